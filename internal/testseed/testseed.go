// Package testseed returns the seeds of random tests. A seed comes from the flag -rcmgr.seed, or
// else from RCMGR_SEED in the environment, or else from the time. A random test that fails logs
// the command that repeats it.
package testseed

import (
	"flag"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

var given = flag.Uint64("rcmgr.seed", Env("RCMGR_SEED"), "seed of random sequences; 0 takes the time (also RCMGR_SEED)")

// Env returns the number in an environment variable, or 0 if the variable has none.
func Env(name string) uint64 {
	n, _ := strconv.ParseUint(os.Getenv(name), 0, 64)
	return n
}

// seeds has, for each running test, the first seed that Of returned and the number of its calls.
var seeds = struct {
	sync.Mutex
	of map[testing.TB]*struct{ first, asked uint64 }
}{of: map[testing.TB]*struct{ first, asked uint64 }{}}

// Of returns a seed for a random test. Each further call for the same test returns a seed that is
// larger by one. Of is safe for concurrent use.
func Of(t testing.TB) uint64 {
	seeds.Lock()
	defer seeds.Unlock()
	s := seeds.of[t]
	if s == nil {
		s = &struct{ first, asked uint64 }{first: *given}
		if s.first == 0 {
			s.first = uint64(time.Now().UnixNano())
		}
		seeds.of[t] = s
		t.Cleanup(func() {
			if t.Failed() {
				t.Logf("repeat with: go test -run '^%s$' -rcmgr.seed=%d", strings.SplitN(t.Name(), "/", 2)[0], s.first)
			}
			seeds.Lock()
			defer seeds.Unlock()
			delete(seeds.of, t)
		})
	}
	s.asked++
	return s.first + s.asked - 1
}

// Random returns a generator of random numbers with the next seed of a test.
func Random(t testing.TB) *rand.Rand { return From(Of(t), 0) }

// From returns a generator whose random numbers are the same for the same seed and stream.
func From(seed, stream uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, stream)) }
