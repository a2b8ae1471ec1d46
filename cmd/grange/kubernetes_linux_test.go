package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"

	"github.com/grangemesh/grange/cmd/csi"
	"github.com/grangemesh/grange/cmd/grange/ask"
)

// object is what the manifests say that has to agree with what others say.
type object struct {
	Version  string `yaml:"apiVersion"`
	Kind     string
	Metadata struct{ Name, Namespace string }
	Subjects []struct{ Kind, Name, Namespace string }
	RoleRef  struct{ Kind, Name string } `yaml:"roleRef"`
	Driver   string
	Class    string            `yaml:"provisioner"`
	Params   map[string]string `yaml:"parameters"`
	Spec     struct {
		Selector struct {
			Labels map[string]string `yaml:"matchLabels"`
		}
		Template struct {
			Metadata struct{ Labels map[string]string }
			Spec     struct {
				Account    string `yaml:"serviceAccountName"`
				Containers []struct {
					Name, Image string
					Args        []string
					Mounts      []struct{ Name string } `yaml:"volumeMounts"`
				}
				Volumes []struct{ Name string }
			}
		}
	}
}

// manifests reads the objects, by kind and name.
func manifests(t *testing.T) map[string]object {
	t.Helper()
	b, err := os.ReadFile("packaging/kubernetes/grange-csi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]object{}
	for d := yaml.NewDecoder(bytes.NewReader(b)); ; {
		var o object
		if err := d.Decode(&o); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		key := o.Kind + " " + o.Metadata.Name
		if _, twice := all[key]; twice || o.Metadata.Name == "" {
			t.Errorf("%s is there twice, or has no name", key)
		}
		all[key] = o
	}
}

// TestManifests: what objects refer to is there, and the programs know the flags that they are given.
func TestManifests(t *testing.T) {
	kinds := map[string]string{
		"Namespace": "v1", "ServiceAccount": "v1", "CSIDriver": "storage.k8s.io/v1", "StorageClass": "storage.k8s.io/v1", "VolumeSnapshotClass": "snapshot.storage.k8s.io/v1", "Deployment": "apps/v1", "DaemonSet": "apps/v1",
		"ClusterRole": "rbac.authorization.k8s.io/v1", "ClusterRoleBinding": "rbac.authorization.k8s.io/v1", "Role": "rbac.authorization.k8s.io/v1", "RoleBinding": "rbac.authorization.k8s.io/v1",
	}
	all := manifests(t)
	has := func(by, kind, name string) {
		if _, ok := all[kind+" "+name]; !ok {
			t.Errorf("%s refers to %s %s, which is not there", by, kind, name)
		}
	}
	seen := map[string]bool{}
	for key, o := range all {
		if kinds[o.Kind] != o.Version {
			t.Errorf("%s has version %q, want %q", key, o.Version, kinds[o.Kind])
		}
		seen[o.Kind] = true
		if o.Metadata.Namespace != "" {
			has(key, "Namespace", o.Metadata.Namespace)
		}
		for _, s := range o.Subjects {
			has(key, s.Kind, s.Name)
			has(key, o.RoleRef.Kind, o.RoleRef.Name)
		}
		if who := o.Driver + o.Class; who != "" {
			has(key, "CSIDriver", who)
		}
		if pods := o.Spec.Template.Spec; len(pods.Containers) > 0 {
			has(key, "ServiceAccount", pods.Account)
			podsAgree(t, key, o)
		}
	}
	if len(seen) != len(kinds) {
		t.Errorf("of these kinds some are missing: %v", slices.Sorted(maps.Keys(seen)))
	}
	has("the driver", "CSIDriver", csi.Name)
	for key := range all["StorageClass grange"].Params {
		if !slices.Contains([]string{"durability", "takeover", "from"}, key) {
			t.Errorf("the class says %s, which the driver refuses", key)
		}
	}
}

// podsAgree checks what the pods of an object mount, and the flags of their programs.
func podsAgree(t *testing.T, key string, o object) {
	t.Helper()
	pods, mounted := o.Spec.Template.Spec, map[string]bool{}
	if !maps.Equal(o.Spec.Selector.Labels, o.Spec.Template.Metadata.Labels) {
		t.Errorf("%s selects %v, and its pods are %v", key, o.Spec.Selector.Labels, o.Spec.Template.Metadata.Labels)
	}
	known := []string{"--csi-address", "--leader-election", "--feature-gates", "--default-fstype", "--timeout", "--kubelet-registration-path"} // of the sidecars, by their documents
	for _, c := range pods.Containers {
		for _, m := range c.Mounts {
			mounted[m.Name] = true
		}
		if c.Name == "grange" {
			if err := understood(c.Args); err != nil {
				t.Errorf("%s: grange %q: %v", key, c.Args, err)
			}
			continue
		}
		for _, arg := range c.Args {
			if flag, _, _ := strings.Cut(arg, "="); !slices.Contains(known, flag) {
				t.Errorf("%s: %s has no flag %s", key, c.Name, flag)
			}
		}
	}
	for _, v := range pods.Volumes {
		if !mounted[v.Name] {
			t.Errorf("%s: nobody mounts %s", key, v.Name)
		}
		delete(mounted, v.Name)
	}
	if len(mounted) > 0 {
		t.Errorf("%s: %v are mounted, and are no volumes", key, mounted)
	}
}

// understood parses a command line of ours.
func understood(args []string) error {
	var c cli
	parser, err := newParser(&c, ask.Stdio{In: strings.NewReader(""), Out: io.Discard, Err: io.Discard})
	if err != nil {
		return err
	}
	command, err := parser.Parse(args)
	if err == nil && command.Command() != "csi" {
		err = fmt.Errorf("it is the command %s", command.Command())
	}
	return err
}
