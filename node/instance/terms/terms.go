// Package terms has the words in which instances are asked for and described. It is pure.
package terms

import (
	"cmp"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/grangemesh/grange/node/instance/state"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

// The runtimes.
const (
	Process = "process"
	VM      = "vm"
)

// Seconds is a time in seconds.
type Seconds float64

// Duration is the same for the program.
func (s Seconds) Duration() time.Duration { return time.Duration(float64(s) * float64(time.Second)) }

const (
	// readyDefault is how long a workload may take until it is ready, where nothing else is said: a database that
	// recovers takes minutes.
	readyDefault = 5 * time.Minute
	// graceDefault is how long one may take to end when it is asked to: as long as supervisors of services give.
	graceDefault = 90 * time.Second
	// memoryDefault is what a machine has of which nothing is said.
	memoryDefault = 1 << 30
	// spanMax bounds each of the times, in seconds: ten years.
	spanMax = Seconds(10 * 365 * 24 * 3600)
	// argumentsMax bounds a command, and what else is a list; all together may be catalog.SpecMax bytes.
	argumentsMax = 256
	treePrefix   = string(content.KindTree) + ":"
)

// Spec says how an instance is run. In Command, Env, Ready and Compact these stand for what the node chooses: {name}, {data},
// the folder of its data, {port}, and {config}, the file that Config names.
type Spec struct {
	Runtime string   `json:"runtime,omitempty" enum:"process,vm" doc:"vm where from is an image, volume or snapshot, else process"`
	From    string   `json:"from,omitempty" maxLength:"270" doc:"what it begins as: tree:NAME, or for a vm image:NAME, volume:NAME or snapshot:NAME@N; an empty folder when not given"`
	Command []string `json:"command,omitempty" maxItems:"256" doc:"of a process: the program and its arguments, with {name}, {data}, {port} and {config}"`
	Env     []string `json:"env,omitempty" maxItems:"256" doc:"of a process: NAME=VALUE beside PATH, HOME and GRANGE_*"`
	User    string   `json:"user,omitempty" maxLength:"64" doc:"who a process runs as, as USER or UID; as the node when not given"`
	Rlimits []string `json:"rlimits,omitempty" maxItems:"32" doc:"of a process: NAME=N, such as nofile=4096"`
	Config  string   `json:"config,omitempty" maxLength:"1024" doc:"a file on the node's host that the workload gets as {config}"`
	NoPort  bool     `json:"no_port,omitempty" doc:"it listens nowhere"`
	Ready   string   `json:"ready,omitempty" maxLength:"512" doc:"when it is ready: tcp, once its port takes connections, which is so for a process when not given, http:/PATH, once that answers with 2xx, log:TEXT, once it has said that, or on its console, or none"`
	// ReadyTimeout and the others are 0 for what is usual.
	ReadyTimeout Seconds  `json:"ready_seconds,omitempty" minimum:"0" doc:"how long that may take; 0: five minutes"`
	Grace        Seconds  `json:"grace_seconds,omitempty" minimum:"0" doc:"how long it may take to end before it is killed; 0: 90 seconds"`
	Compact      []string `json:"compact,omitempty" maxItems:"256" doc:"a command that has the workload make itself small before it is put away; it ends with 0 once that is done, and with 75 while it is under way, or about to be: then it is asked again"`
	Idle         Seconds  `json:"idle_seconds,omitempty" minimum:"0" doc:"it is deprovisioned when nobody was connected to its port, or its probe says so, for so long; 0: never"`
	Probe        []string `json:"probe,omitempty" maxItems:"256" doc:"a command that ends with 0 while the workload is in use, in place of a look at its port"`
	Memory       int64    `json:"memory,omitempty" minimum:"0" doc:"bytes that it is expected to take, for the node's limit; of a vm what it has"`
	Disk         int64    `json:"disk,omitempty" minimum:"0" doc:"bytes of disk that it is expected to take; of a vm the least size of its disk"`
	CPUs         int      `json:"cpus,omitempty" minimum:"0" maximum:"256" doc:"of a vm"`
	Keys         []string `json:"keys,omitempty" maxItems:"32" doc:"of a vm: SSH keys that it is told to let in"`
	Kernel       string   `json:"kernel,omitempty" maxLength:"512" doc:"of a vm: a kernel on the node's host that is booted, with initrd and append, in place of what its disk has for that"`
	Initrd       string   `json:"initrd,omitempty" maxLength:"512" doc:"what that is given as its first disk"`
	Append       string   `json:"append,omitempty" maxLength:"512" doc:"and as its command line"`
	Lazy         bool     `json:"lazy,omitempty" doc:"of a process: it starts before its data are here, which are brought in as they are read, and behind that"`
	Target       string   `json:"target,omitempty" maxLength:"512" doc:"of a process: where its data are put away, and come from, in place of the mesh's origin: file:///FOLDER, which all nodes that run it have to reach, or s3://BUCKET/PREFIX?endpoint=URL&region=NAME&path-style=true, without credentials"`
	Mesh         bool     `json:"mesh,omitempty" doc:"nodes of any farm may run it and read what it has; the nodes must be publishers"`
}

// Request is what a caller asks for, of a name.
type Request struct {
	Spec
	Takeover bool `json:"takeover,omitempty" doc:"although another node has it: what that one has not put away stays there"`
}

// View describes an instance.
type View struct {
	Name      string      `json:"name"`
	State     state.State `json:"state" enum:"unprovisioned,provisioning,provisioned,hibernating,hibernated,waking,deprovisioning,crashed,recovering,obliterating,orphaned"`
	Step      state.Step  `json:"step,omitempty" doc:"what is being done"`
	Detail    string      `json:"detail,omitempty" doc:"what has failed last"`
	Operation string      `json:"operation,omitempty" doc:"the operation that holds it"`
	Spec      Spec        `json:"spec"`
	Port      int         `json:"port,omitempty"`
	PID       int         `json:"pid,omitempty"`
	Dir       string      `json:"dir,omitempty" doc:"where its data are on the node's host"`
	Epoch     uint64      `json:"epoch"`
	Crashes   int         `json:"crashes,omitempty" doc:"how often it has ended by itself since it ran for long"`
	Saved     time.Time   `json:"saved_at,omitzero" doc:"when what it has was put away last"`
	Root      content.CID `json:"root,omitzero" doc:"the tree that was put away then"`
	Since     time.Time   `json:"since" doc:"when it got into this state"`
	Node      string      `json:"node,omitempty" doc:"who has it"`
	Farm      string      `json:"farm,omitempty"`
}

// WithDefaults checks what is asked for; ErrInvalid says what is wrong.
func (s Spec) WithDefaults() (Spec, error) {
	if s.Runtime == "" {
		s.Runtime = Process
		if !strings.HasPrefix(s.From, treePrefix) && s.From != "" {
			s.Runtime = VM
		}
	}
	for _, span := range []Seconds{s.ReadyTimeout, s.Grace, s.Idle} {
		if span < 0 || span > spanMax {
			return s, fmt.Errorf("%v seconds: %w: want 0 to %v", span, content.ErrInvalid, spanMax)
		}
	}
	check := s.checkProcess
	if s.Runtime == VM {
		check, s.Memory = s.checkVM, cmp.Or(s.Memory, memoryDefault)
	} else if s.Runtime != Process {
		return s, fmt.Errorf("runtime %.20q: %w: want process or vm", s.Runtime, content.ErrInvalid)
	}
	err := errors.Join(check(), s.checkReady())
	if err != nil {
		return s, err
	}
	_, err = s.Encode()
	return s, err
}

func (s Spec) checkReady() error {
	switch how, what := s.ReadyWhen(); {
	case how == "http":
		if _, err := url.ParseRequestURI(what); err != nil || !strings.HasPrefix(what, "/") {
			return fmt.Errorf("ready %.60q: %w: want http:/PATH", s.Ready, content.ErrInvalid)
		}
	case how == "log" && what == "", how == "":
		return fmt.Errorf("ready %.60q: %w: want tcp, http:/PATH, log:TEXT or none", s.Ready, content.ErrInvalid)
	}
	return nil
}

func (s Spec) checkProcess() error {
	switch {
	case s.From != "" && content.KindTree.CheckName(s.Tree()) != nil:
		return fmt.Errorf("from %.60q: %w: a process is run over tree:NAME; leave --runtime out for a vm", s.From, content.ErrInvalid)
	case len(s.Command) == 0 || s.Command[0] == "":
		return fmt.Errorf("%w: a process needs a command; as it was before it is run by its name alone: grange instance provision NAME … -- COMMAND ARGUMENT…", content.ErrInvalid)
	case s.NoPort && (s.Ready == "tcp" || strings.HasPrefix(s.Ready, "http:")), s.NoPort && s.Idle > 0 && len(s.Probe) == 0:
		return fmt.Errorf("%w: without a port it is ready by log:TEXT or none, and idle by a probe: give --ready, --probe or a port", content.ErrInvalid)
	case s.CPUs > 0, len(s.Keys) > 0, s.Kernel+s.Initrd+s.Append != "":
		return fmt.Errorf("%w: cpus, keys, kernel, initrd and append are for a vm", content.ErrInvalid)
	}
	for _, list := range [][]string{s.Command, s.Compact, s.Probe, s.Env} {
		if len(list) > argumentsMax || slices.ContainsFunc(list, func(a string) bool { return strings.ContainsRune(a, 0) }) {
			return fmt.Errorf("%w: a command or environment of %d parts, at most %d, none with a byte of 0", content.ErrInvalid, len(list), argumentsMax)
		}
	}
	for _, v := range s.Env {
		if name, _, ok := strings.Cut(v, "="); !ok || name == "" {
			return fmt.Errorf("env %.60q: %w: want NAME=VALUE", v, content.ErrInvalid)
		}
	}
	if s.Config != "" && !filepath.IsAbs(s.Config) {
		return fmt.Errorf("config %.60q: %w: want an absolute path on the node's host", s.Config, content.ErrInvalid)
	}
	_, err := s.Limits()
	return errors.Join(err, s.checkTarget())
}

func (s Spec) checkTarget() error {
	switch {
	case s.Target == "":
		return nil
	case s.Lazy:
		return fmt.Errorf("%w: what is at a target of its own is brought in before it starts: leave out lazy", content.ErrInvalid)
	}
	u, err := url.Parse(s.Target)
	if err != nil || u.Scheme != "file" && u.Scheme != "s3" || u.Scheme == "file" && (u.Host != "" || !filepath.IsAbs(u.Path)) || u.Scheme == "s3" && u.Host == "" {
		return fmt.Errorf("target %.100q: %w: want file:///ABSOLUTE/FOLDER or s3://BUCKET/PREFIX", s.Target, content.ErrInvalid)
	}
	if u.User != nil { // members read the record
		return fmt.Errorf("target: %w: credentials stay in the node's environment", content.ErrInvalid)
	}
	return nil
}

// TargetOf is the part of the target that an instance has.
func (s Spec) TargetOf(name string, id catalog.InstanceID) string {
	u, err := url.Parse(s.Target)
	if err != nil { // it was checked
		return s.Target
	}
	return u.JoinPath("instances", content.Segment(name), hex.EncodeToString(id[:])).String()
}

// Tree is the name of the tree that a process begins with; "" for none.
func (s Spec) Tree() string {
	name, _ := strings.CutPrefix(s.From, treePrefix)
	return name
}

func (s Spec) checkVM() error {
	switch _, err := content.ParseRef(s.From); {
	case err != nil:
		return fmt.Errorf("from %.60q: %w: want tree:NAME for a process, or for a vm image:NAME, volume:NAME or snapshot:NAME@N", s.From, content.ErrInvalid)
	case len(s.Command)+len(s.Env)+len(s.Rlimits)+len(s.Compact)+len(s.Probe) > 0 || s.User != "" || s.Config != "":
		return fmt.Errorf("%w: command, env, user, rlimits, config, probe and compact are for a process", content.ErrInvalid)
	case s.Kernel == "" && s.Initrd+s.Append != "", s.Kernel != "" && !filepath.IsAbs(s.Kernel), s.Initrd != "" && !filepath.IsAbs(s.Initrd):
		return fmt.Errorf("%w: initrd and append come with a kernel, as absolute paths on the node's host", content.ErrInvalid)
	case s.Mesh, s.Lazy, s.Target != "":
		return fmt.Errorf("%w: mesh, lazy and target are for a process: a vm's volume stays in its farm, and at the mesh's origin, and is always brought in as it is read", content.ErrInvalid)
	}
	return nil
}

// Agrees fails with content.Differs when an instance that is there is to be run otherwise than it is. A request that says no
// more than a name agrees with all.
func (s Spec) Agrees(is Spec) error {
	if s.IsZero() {
		return nil
	}
	a, _ := s.Encode()
	if b, _ := is.Encode(); string(a) != string(b) {
		return fmt.Errorf("%w: it is run otherwise, as `grange instance show` says; deprovision it first", content.Differs)
	}
	return nil
}

// IsZero reports whether nothing is said.
func (s Spec) IsZero() bool {
	b, _ := json.Marshal(s)
	return string(b) == "{}"
}

// Encode returns it as a record has it; one that takes more than catalog.SpecMax bytes is ErrInvalid.
func (s Spec) Encode() ([]byte, error) {
	b, err := json.Marshal(s)
	if err == nil && len(b) > catalog.SpecMax {
		err = fmt.Errorf("%w: how it is run takes %d bytes, at most %d fit in its record: put the rest in a file, and name that with --config-file", content.ErrInvalid, len(b), catalog.SpecMax)
	}
	return b, err
}

// Decode reads what Encode has written; anything else is ErrCorrupt.
func Decode(b []byte) (s Spec, err error) {
	if err := json.Unmarshal(b, &s); err != nil {
		return s, fmt.Errorf("how an instance is run: %w: %w", content.ErrCorrupt, err)
	}
	return s, nil
}

// Limits are the resources of a process, by their names in limits.conf(5); unlimited is the greatest number.
func (s Spec) Limits() (map[string]uint64, error) {
	out := map[string]uint64{}
	for _, text := range s.Rlimits {
		name, value, _ := strings.Cut(text, "=")
		n, err := strconv.ParseUint(value, 10, 64)
		if value == "unlimited" {
			n, err = math.MaxUint64, nil
		}
		if !slices.Contains(limitNames(), name) || err != nil {
			return nil, fmt.Errorf("rlimit %.60q: %w: want NAME=N or NAME=unlimited, as in nofile=4096, where NAME is one of %s", text, content.ErrInvalid, strings.Join(limitNames(), ", "))
		}
		out[name] = n
	}
	return out, nil
}

func limitNames() []string {
	return []string{"as", "core", "cpu", "data", "fsize", "memlock", "nofile", "nproc", "rtprio", "stack"}
}

// Patience is how long a workload may take until it is ready.
func (s Spec) Patience() time.Duration { return cmp.Or(s.ReadyTimeout.Duration(), readyDefault) }

// GraceTime is how long one may take to end.
func (s Spec) GraceTime() time.Duration { return cmp.Or(s.Grace.Duration(), graceDefault) }

// Scope is that of what is put away, on a node of a farm.
func (s Spec) Scope(farm string) content.Scope {
	if s.Mesh {
		return content.Mesh()
	}
	return content.Farm(farm)
}

// ReadyWhen is what says that it is ready: tcp, http with the path that is asked for, log with what is said there, or none;
// and "" for what is none of these.
func (s Spec) ReadyWhen() (how, what string) {
	how, what, ok := strings.Cut(s.Ready, ":")
	switch {
	case s.Ready == "" && (s.Runtime == VM || s.NoPort):
		return "none", ""
	case s.Ready == "":
		return "tcp", ""
	case ok == (how == "http" || how == "log") && slices.Contains([]string{"tcp", "http", "log", "none"}, how):
		return how, what
	}
	return "", ""
}

// Places is what stands for what in a command.
type Places struct {
	Name, Data, Config string
	Port               int
}

// Fill returns a list with what its places stand for.
func (p Places) Fill(list []string) []string {
	with := strings.NewReplacer("{name}", p.Name, "{data}", p.Data, "{config}", p.Config, "{port}", fmt.Sprint(p.Port))
	out := make([]string, len(list))
	for i, a := range list {
		out[i] = with.Replace(a)
	}
	return out
}
