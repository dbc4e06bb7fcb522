package rcmgr

// Ours against go-libp2p's own manager. Both are asked the same questions, one
// after another, and after each both must have given the same answer and hold
// the same. A sequence of questions is a string of bytes, so that the fuzzer
// can make them too, and so that what failed can be made shorter.
//
// In half of the worlds, all scopes of ours have rates that refuse nothing: it must decide just as
// without them. Go-libp2p's reads the same file of limits, and ignores them.
//
// Where ours differs on purpose, the comparison excuses it by name: each excuse
// is the first cell of a line of DIFFERENCES.md. Where answers that differ leave
// the managers in different states, the scope in question is ended in both.

import (
	"cmp"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/stretchr/testify/require"
)

var differentialFlag = flag.Int("rcmgr.differential", int(envUint("RCMGR_DIFFERENTIAL")),
	"calls to compare with go-libp2p's manager; 0 takes the default (also RCMGR_DIFFERENTIAL)")

// excuse is a purposeful difference, by its name in DIFFERENCES.md.
type excuse string

const (
	excuseMemoryText    excuse = "text of a refusal of memory"
	excuseMoveText      excuse = "text of a refusal to move"
	excuseMisuseText    excuse = "text of a misuse"
	excuseSetAfterDone  excuse = "SetPeer, SetProtocol, SetService after Done"
	excuseAfterDone     excuse = "Limit, ProtocolScope and ServiceScope after Done"
	excuseFailedMove    excuse = "an allowlisted connection that cannot be moved"
	excuseZeroMove      excuse = "what a moved scope does not hold"
	excuseStreams       excuse = "streams of an allowlisted peer"
	excuseSpanLimit     excuse = "limit of a span"
	excuseConnLimit     excuse = "GetConnLimit"
	excuseGateError     excuse = "error of a gate"
	excuseRoomFirst     excuse = "order of gates and scopes"
	excuseVerifyByLoad  excuse = "VerifySourceAddress under load"
	excuseReporter      excuse = "a MetricsReporter"
	limitExceededSuffix        = ": resource limit exceeded"
)

var allExcuses = []excuse{excuseMemoryText, excuseMoveText, excuseMisuseText, excuseSetAfterDone, excuseAfterDone, excuseFailedMove,
	excuseZeroMove, excuseStreams, excuseSpanLimit, excuseConnLimit, excuseGateError, excuseRoomFirst,
	excuseVerifyByLoad, excuseReporter}

// question is one call, in bytes: which, on what, with which arguments.
type question [8]byte

func (q *question) number() uint64 { return binary.LittleEndian.Uint64(q[:]) >> 24 }

// of takes one of n by a byte of the question.
func of[T any](b byte, list []T) T { return list[int(b)%len(list)] }

// questions reads bytes as a world and what is asked there.
func questions(data []byte) (world question, asked []question) {
	copy(world[:], data)
	for data = data[min(len(data), len(world)):]; len(data) >= len(question{}); data = data[len(question{}):] {
		asked = append(asked, question(data[:len(question{})]))
	}
	return world, asked
}

func randomQuestions(r *rand.Rand, n int) []byte {
	data := make([]byte, 0, (n+1)*len(question{}))
	for range n + 1 {
		data = binary.LittleEndian.AppendUint64(data, r.Uint64())
	}
	return data
}

// compareManagers asks both managers the same, and returns the first difference
// that has no excuse, or nil. With told, it also returns the whole story.
func compareManagers(data []byte, excused map[excuse]int, told bool) (story []string, asked int, err error) {
	first, list := questions(data)
	w, err := newWorlds(first, excused, told)
	if err != nil {
		return nil, 0, err
	}
	for i := 0; i < len(list) && w.err == nil; i++ {
		w.ask(&list[i])
		w.compare(i%16 == 0)
		asked++
	}
	for _, tw := range slices.Backward(w.held) {
		w.end(tw)
	}
	w.compare(true)
	for _, tw := range w.shared {
		w.release(tw, tw.reserved)
	}
	w.compare(true)
	w.own.inOneCut(func() {
		if err := brokenInvariant(w.own, true); err != nil {
			w.fail("%v", err)
		}
	})
	if s := w.own.Stat(); s.System != (network.ScopeStat{}) {
		w.fail("at the end something is left: %+v", s)
	}
	if err := errors.Join(w.theirs.Close(), w.own.Close()); err != nil { // not deferred: a panic may hold locks
		w.fail("%v", err)
	}
	return w.story, asked, w.err
}

func (w *worlds) tell(format string, args ...any) {
	if w.told {
		w.story = append(w.story, fmt.Sprintf(format, args...))
	}
}

func (w *worlds) fail(format string, args ...any) {
	if w.err == nil {
		w.err = fmt.Errorf(format, args...)
	}
}

func (w *worlds) excuse(e excuse) {
	w.excused[e]++
	switch e {
	case excuseMemoryText, excuseMoveText:
	default:
		w.quiet = true
	}
}

// shrink leaves out questions for as long as the managers still differ.
func shrink(data []byte, patience time.Duration) []byte {
	differ := func(data []byte) bool {
		for range 2 { // which stripe serves whom is left to chance
			if _, _, err := compareManagers(data, map[excuse]int{}, false); err != nil {
				return true
			}
		}
		return false
	}
	size := len(question{})
	deadline := time.Now().Add(patience)
	for chunk := (len(data)/size - 1) / 2; chunk > 0 && time.Now().Before(deadline); {
		shorter := false
		for at := size; at < len(data) && time.Now().Before(deadline); {
			without := slices.Concat(data[:at], data[min(len(data), at+chunk*size):])
			if differ(without) {
				data, shorter = without, true
			} else {
				at += chunk * size
			}
		}
		if !shorter || chunk > 1 {
			chunk /= 2
		}
	}
	return data
}

// requireSame compares both managers, and reports the shortest story of how they
// differ.
func requireSame(t testing.TB, data []byte, excused map[excuse]int) int {
	_, asked, err := compareManagers(data, excused, false)
	if err == nil {
		return asked
	}
	short := shrink(data, 20*time.Second)
	story, _, again := compareManagers(short, map[excuse]int{}, true)
	if again == nil {
		short = data
		if story, _, again = compareManagers(data, map[excuse]int{}, true); again == nil {
			again = fmt.Errorf("%w (this time it does not fail)", err)
		}
	}
	t.Fatalf("%v\n%s\nas bytes: %x", again, strings.Join(story, "\n"), short)
	return asked
}

func TestManagersDecideTheSame(t *testing.T) {
	steps := cmp.Or(*differentialFlag, 100_000)
	if testing.Short() || raceDetector() { // it is one goroutine: there is no race to find
		steps = cmp.Or(*differentialFlag, 2000)
	}
	seed := testSeed(t)
	excused, asked := map[excuse]int{}, 0
	for world := uint64(0); asked < steps; world++ {
		r := randomFrom(seed, world)
		asked += requireSame(t, randomQuestions(r, min(steps-asked, 100+r.IntN(1500))), excused)
	}
	t.Logf("seed %d: %d calls; excused: %v", seed, asked, excused)
	if asked >= 1_000_000 {
		for _, e := range allExcuses {
			require.NotZero(t, excused[e], "%q is never needed", e)
		}
	}
}

func FuzzDifferential(f *testing.F) {
	r := randomFrom(1, 1)
	for range 24 {
		f.Add(randomQuestions(r, 40))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		requireSame(t, data[:min(len(data), 4096)], map[excuse]int{})
	})
}

func TestEveryExcuseIsAKnownDifference(t *testing.T) {
	known := map[string]bool{}
	for _, d := range readDifferences(t) {
		known[d.name] = true
	}
	for _, e := range allExcuses {
		require.True(t, known[string(e)], "DIFFERENCES.md does not know %q", e)
	}
}
