package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/alecthomas/kong"
	"gopkg.in/yaml.v3"

	"github.com/grangemesh/grange/cmd/grange/units"
	"github.com/grangemesh/grange/origin/content"
)

// configFile is a flag that reads settings from a YAML file: a flat map from flags' names to values. Flags and environment come
// before it. An unknown setting is an error, so that a mistyped one is not silently without effect.
type configFile string

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
			setting[flag.Name] = setting[flag.Name] || len(flag.Envs) > 0 // another command's of that name may destroy nothing
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
		if len(flag.Envs) == 0 || slices.ContainsFunc(flag.Envs, func(name string) bool { _, set := os.LookupEnv(name); return set }) {
			return nil, nil
		}
		return settings[flag.Name], nil
	}))
	return nil
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
		if _, ok := errors.AsType[*yaml.TypeError](err); ok { // whose text speaks of Go
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
	ioTimeoutMin = units.Span(time.Second)
)

// Validate refuses limits with which no node could work. Zero is a rate not given.
func (c *nodeCmd) Validate() error {
	switch {
	case c.OriginRate != 0 && c.OriginRate < originRateMin:
		return fmt.Errorf("--origin-rate: %d bytes a second would not bring in a chunk in time; give %s/s or more", c.OriginRate, units.Bytes(originRateMin))
	case c.OriginRequests != 0 && c.OriginRequests < originRequestsMin:
		return fmt.Errorf("--origin-requests: %g requests a second are not enough to see whether the origin answers; give %d/s or more", c.OriginRequests, originRequestsMin)
	case c.IoTimeout < ioTimeoutMin:
		return fmt.Errorf("--io-timeout: within %s no read comes from anywhere; give 1s or more", time.Duration(c.IoTimeout))
	}
	return errors.Join(c.memberFlags.Validate(), c.Instance.Validate(), c.Upkeep.Validate())
}

// Validate refuses a cache that could not turn over.
func (c *memberFlags) Validate() error {
	if c.Quota < quotaMin {
		return fmt.Errorf("--quota: %s is no room for a cache; give %s or more", units.Bytes(int64(c.Quota)), units.Bytes(quotaMin))
	}
	return c.followFlags.Validate()
}
