# Targets: build test race lint fuzz bench soak demo vm. See README.md.

GO          ?= go
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
# Packages that start whole meshes must not starve each other on two cores.
TESTFLAGS   ?= -p 2 -timeout 30m
FUZZTIME    ?= 10s
BENCHTIME   ?= 3s

.PHONY: build packages test race lint fuzz bench soak demo vm tools

build: ## bin/grange
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/grange ./cmd/grange

packages: ## bin/packages: .deb and .rpm, archives, an OCI image, and their sums; the same bytes each time
	$(GO) run ./cmd/grange/packaging -out bin/packages

tools: # what the tests run beside Go
	@.ci/tools

test: tools build ## everything that CI runs
	@.ci/test $(TESTFLAGS) ./...

race: tools ## the same under the race detector
	@.ci/test -race $(TESTFLAGS) ./...

lint: ## no program is run
	@test -z "$$(gofmt -l .)" || { gofmt -l .; echo "gofmt these files"; exit 1; }
	$(GO) mod tidy -diff
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...
	@for target in linux/arm64 darwin/amd64 darwin/arm64 windows/amd64 windows/arm64; do \
		echo "build $$target"; \
		CGO_ENABLED=0 GOOS=$${target%/*} GOARCH=$${target#*/} $(GO) build -trimpath -o /dev/null ./cmd/grange || exit 1; \
	done

fuzz: ## each decoder of untrusted bytes, FUZZTIME each
	@.ci/fuzz $(FUZZTIME)

bench: tools build ## figures beside their peers, in one run
	$(GO) test -run '^$$' -bench . -benchtime $(BENCHTIME) -timeout 60m -p 1 ./...

soak: tools build ## the tests, with the long loops at their full counts
	GRANGE_SOAK=1 .ci/test -p 1 -timeout 6h ./...

demo: build ## a mesh of two farms on this machine boots a real image
	@.ci/tools
	$(GO) run ./simulations/demo

vm: tools build ## a shell in a guest that has ublk and nbd, with bin/grange
	@$(GO) run ./simulations/vm/shell bin/grange
