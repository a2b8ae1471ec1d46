package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/alecthomas/kong"
	"github.com/dustin/go-humanize"
	"gopkg.in/yaml.v3"

	"github.com/grangemesh/grange/origin/content"
)

// configFile is a flag that reads settings from a YAML file: a flat map from
// flags' names to values. Flags and environment come before it. An unknown
// setting is an error, so that a mistyped one is not silently without effect.
type configFile string

// BeforeResolve reads the file while the command line is parsed.
func (f configFile) BeforeResolve(k *kong.Kong, ctx *kong.Context, trace *kong.Path) error {
	path := string(ctx.FlagValue(trace.Flag).(configFile))
	settings, err := readConfig(path, path == trace.Flag.Default)
	if err != nil {
		return err
	}
	// What is not taken from the environment, as it destroys, is not from a file either.
	setting := map[string]bool{}
	for _, node := range append([]*kong.Node{k.Model.Node}, k.Model.Leaves(false)...) {
		for _, flag := range node.Flags {
			setting[flag.Name] = len(flag.Envs) > 0
		}
	}
	var unknown []string
	for name := range settings {
		_, flag := setting[name]
		switch meant := strings.ReplaceAll(name, "_", "-"); {
		case setting[name]:
			continue
		case flag:
			name += " (on the command line alone)"
		case setting[meant]:
			name += " (" + meant + " is meant?)"
		}
		unknown = append(unknown, name)
	}
	if len(unknown) > 0 {
		slices.Sort(unknown)
		return fmt.Errorf("config %s: unknown settings: %s; `grange node --help` lists them all", path, strings.Join(unknown, ", "))
	}
	ctx.AddResolver(kong.ResolverFunc(func(_ *kong.Context, _ *kong.Path, flag *kong.Flag) (any, error) {
		if len(flag.Envs) == 0 || slices.ContainsFunc(flag.Envs, inEnvironment) {
			return nil, nil
		}
		return settings[flag.Name], nil
	}))
	return nil
}

func inEnvironment(name string) bool {
	_, ok := os.LookupEnv(name)
	return ok
}

// configSizeMax bounds a config file.
const configSizeMax = 1 << 20

// readConfig reads a config file, which need not be there if nobody has named it.
func readConfig(path string, optional bool) (map[string]any, error) {
	f, err := os.Open(path)
	if optional && errors.Is(err, fs.ErrNotExist) || path == "" {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	defer f.Close()
	var raw map[string]any
	if err := yaml.NewDecoder(io.LimitReader(f, configSizeMax)).Decode(&raw); err != nil && !errors.Is(err, io.EOF) {
		var form *yaml.TypeError
		if errors.As(err, &form) { // whose text speaks of Go
			err = errors.New("want lines of the form NAME: VALUE, the names being those of flags")
		}
		return nil, fmt.Errorf("config %s: %w", path, err)
	}
	out := make(map[string]any, len(raw))
	for name, v := range raw {
		switch v := v.(type) {
		case []any:
			items := make([]any, len(v)) // which a separator of the flag does not split again
			for i, item := range v {
				items[i] = fmt.Sprint(item)
			}
			out[name] = items
		case map[string]any:
			return nil, fmt.Errorf("config %s: %s: want a value or a list, not a group", path, name)
		default:
			out[name] = fmt.Sprint(v)
		}
	}
	return out, nil
}

const (
	// quotaMin is the least that --quota may be: what the cache needs to turn over.
	quotaMin = 256 << 20
	// originRateMin is the least that --origin-rate may be: a chunk a second.
	originRateMin = content.ChunkSizeDefault
	// originRequestsMin is the least that --origin-requests may be: to see the origin.
	originRequestsMin = 1
	// ioTimeoutMin is the least that --io-timeout may be: a read from a good store.
	ioTimeoutMin = span(time.Second)
)

// Validate refuses limits with which no node could work. Zero is a rate not given.
func (c *nodeCmd) Validate() error {
	switch {
	case c.Quota < quotaMin:
		return fmt.Errorf("--quota: %s is no room for a cache; give %s or more", humanBytes(int64(c.Quota)), humanBytes(quotaMin))
	case c.OriginRate != 0 && c.OriginRate < originRateMin:
		return fmt.Errorf("--origin-rate: %d bytes a second would not bring in a chunk in time; give %s/s or more", c.OriginRate, humanBytes(originRateMin))
	case c.OriginRequests != 0 && c.OriginRequests < originRequestsMin:
		return fmt.Errorf("--origin-requests: %g requests a second are not enough to see whether the origin answers; give %d/s or more", c.OriginRequests, originRequestsMin)
	case c.IoTimeout < ioTimeoutMin:
		return fmt.Errorf("--io-timeout: within %s no read comes from anywhere; give 1s or more", time.Duration(c.IoTimeout))
	}
	return nil
}

// sizeMax bounds what sizes may be given: caches are larger than the largest disk.
const sizeMax = 64 * content.SizeMax

// size is a number of bytes, written as 10GiB, 10G, which is the same, or 500MB.
type size int64

// UnmarshalText reads the text form.
func (s *size) UnmarshalText(b []byte) error {
	text := string(b)
	if unit := strings.ToUpper(text[max(0, len(text)-1):]); unit != "" && strings.Contains("KMGTP", unit) {
		text += "iB" // as disks are made: 10G is 10GiB
	}
	n, err := humanize.ParseBytes(text)
	if err != nil || n > sizeMax {
		return fmt.Errorf("%q is not a size; write it as 10GiB or 500MB", b)
	}
	*s = size(n)
	return nil
}

// rate is a size a second, written as 50MiB/s; the "/s" may be left out.
type rate int64

// UnmarshalText reads the text form.
func (r *rate) UnmarshalText(b []byte) error {
	var s size
	if err := s.UnmarshalText([]byte(strings.TrimSuffix(string(b), "/s"))); err != nil || s == 0 {
		return fmt.Errorf("%q is not a rate; write it as 50MiB/s", b)
	}
	*r = rate(s)
	return nil
}

// frequency is a number of requests a second, written as 100/s.
type frequency float64

// UnmarshalText reads the text form.
func (f *frequency) UnmarshalText(b []byte) error {
	n, err := strconv.ParseFloat(strings.TrimSuffix(string(b), "/s"), 64)
	if err != nil || !(n > 0) || math.IsInf(n, 1) { // NaN is not above zero
		return fmt.Errorf("%q is not a number of requests; write it as 100/s", b)
	}
	*f = frequency(n)
	return nil
}

// span is a time that passes, written as 30s, 24h or 7d.
type span time.Duration

const day = 24 * time.Hour

// UnmarshalText reads the text form.
func (s *span) UnmarshalText(b []byte) error {
	d, err := time.ParseDuration(string(b))
	if days, ok := strings.CutSuffix(string(b), "d"); ok {
		var n int
		n, err = strconv.Atoi(days)
		d = time.Duration(n) * day
		if n > int(math.MaxInt64/day) {
			err = strconv.ErrRange
		}
	}
	if err != nil || d <= 0 {
		return fmt.Errorf("%q is not a time; write it as 30s, 24h or 7d", b)
	}
	*s = span(d)
	return nil
}

func humanBytes(n int64) string {
	if n < 0 {
		return "?"
	}
	return humanize.IBytes(uint64(n))
}
