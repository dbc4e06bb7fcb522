// Package consumer is a program outside rcmgr's module that has a host with a resource manager
// of rcmgr. It shows that rcmgr's requirements change no version of what the host builds with.
package consumer

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p"

	"github.com/weir-p2p/rcmgr/rcmgrhost"
)

// The release of go-libp2p that go.mod asks for.
const hostVersion = "v0.49.0"

// A host that requires a newer go-libp2p than rcmgr does keeps its release, and every other
// module keeps the version that it has in a host without rcmgr.
func TestRequiringRcmgrLiftsNoModule(t *testing.T) {
	bare := t.TempDir()
	write(t, filepath.Join(bare, "go.mod"), "module bare\n\ngo 1.25.7\n\nrequire github.com/libp2p/go-libp2p "+hostVersion+"\n")
	write(t, filepath.Join(bare, "main.go"), "package main\n\nimport _ \"github.com/libp2p/go-libp2p\"\n\nfunc main() {}\n")
	run(t, bare, "mod", "tidy")
	without := buildList(t, bare)
	with := buildList(t, ".")

	if len(without) < 50 || without["github.com/libp2p/go-libp2p"] != hostVersion {
		t.Fatalf("a host without rcmgr has %d modules and go-libp2p %q, expected 50 or more and %q",
			len(without), without["github.com/libp2p/go-libp2p"], hostVersion)
	}
	for module, version := range without {
		if with[module] != version {
			t.Errorf("%s: %q with rcmgr, %q without", module, with[module], version)
		}
	}
	maps.DeleteFunc(with, func(module, _ string) bool { return without[module] != "" })
	added := slices.Sorted(maps.Keys(with))
	expected := []string{
		"github.com/KimMachineGun/automemlimit",
		"github.com/gaissmai/bart",
		"github.com/weir-p2p/rcmgr",
	}
	if !slices.Equal(added, expected) {
		t.Errorf("rcmgr adds the modules %q, expected %q", added, expected)
	}
}

func TestAHostHasItsManager(t *testing.T) {
	host, err := libp2p.New(rcmgrhost.Manager(nil), libp2p.NoListenAddrs)
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	if _, ok := rcmgrhost.Of(host); !ok {
		t.Error("the host has no manager of rcmgr")
	}
}

// buildList returns the versions of all modules that the module in a directory depends on.
func buildList(t *testing.T, dir string) map[string]string {
	t.Helper()
	versions := make(map[string]string)
	for line := range strings.Lines(run(t, dir, "list", "-m", "-f", "{{if not .Main}}{{.Path}} {{.Version}}{{end}}", "all")) {
		if module, version, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			versions[module] = version
		}
	}
	return versions
}

// run runs the go command in a directory and returns its output.
func run(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command("go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s in %s: %v", cmd, dir, err)
	}
	return string(out)
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
