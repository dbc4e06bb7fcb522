package rcmgr

// The events of a traced manager must add up: it is audited over the random
// sequences of scope_test.go.

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// auditor keeps what every scope holds by what events say, and notes the first
// event that does not follow from those before it.
type auditor struct {
	held   map[string]*TraceEvt
	events int
	wrong  error
	// A span may outlive its owner, and even the scope that both belong to. That
	// one may come back then, and number its spans anew: what events say of a name
	// that two spans share is not followed.
	orphans, shared map[string]bool
}

func newAuditor() *auditor {
	return &auditor{held: map[string]*TraceEvt{}, orphans: map[string]bool{}, shared: map[string]bool{}}
}

func (a *auditor) ConsumeEvent(e TraceEvt) {
	a.events++
	if a.wrong == nil {
		if err := a.follow(&e); err != nil {
			a.wrong = fmt.Errorf("event %d, %+v: %w", a.events, e, err)
		}
	}
}

func (a *auditor) follow(e *TraceEvt) error {
	was := a.held[e.Name]
	switch e.Type {
	case TraceStartEvt:
		return nil
	case TraceCreateScopeEvt:
		if a.orphans[e.Name] {
			a.shared[e.Name] = true
		} else if was != nil {
			return fmt.Errorf("it exists already")
		}
		a.held[e.Name] = &TraceEvt{}
		return nil
	case TraceDroppedEvt:
		return fmt.Errorf("some are missing")
	}
	if a.shared[e.Name] {
		return nil
	}
	if was == nil {
		return fmt.Errorf("no such scope")
	}
	now, change := *was, int64(1)
	switch e.Type {
	case TraceDestroyScopeEvt:
		delete(a.held, e.Name)
		delete(a.orphans, e.Name)
		for name := range a.held {
			if strings.HasPrefix(name, e.Name+".span-") {
				a.orphans[name] = true
			}
		}
		return nil
	case TraceBlockReserveMemoryEvt, TraceBlockAddStreamEvt, TraceBlockAddConnEvt:
		change = 0 // it holds what it held
	}
	switch e.Type {
	case TraceReserveMemoryEvt, TraceReleaseMemoryEvt, TraceBlockReserveMemoryEvt:
		now.Memory += change * e.Delta
		if now.Memory != e.Memory {
			return fmt.Errorf("it holds %d bytes", now.Memory)
		}
	case TraceAddStreamEvt, TraceRemoveStreamEvt, TraceBlockAddStreamEvt:
		now.StreamsIn += int(change) * e.DeltaIn
		now.StreamsOut += int(change) * e.DeltaOut
		if now.StreamsIn != e.StreamsIn || now.StreamsOut != e.StreamsOut {
			return fmt.Errorf("it holds %d and %d streams", now.StreamsIn, now.StreamsOut)
		}
	default:
		now.ConnsIn += int(change) * e.DeltaIn
		now.ConnsOut += int(change) * e.DeltaOut
		now.FD += int(change * e.Delta)
		if now.ConnsIn != e.ConnsIn || now.ConnsOut != e.ConnsOut || now.FD != e.FD {
			return fmt.Errorf("it holds %d and %d connections and %d descriptors", now.ConnsIn, now.ConnsOut, now.FD)
		}
	}
	*was = now
	return nil
}

func TestEventsOfRandomSequencesAddUp(t *testing.T) {
	seed := testSeed(t)
	for cell := range uint64(24) {
		r := randomFrom(seed, cell)
		a := newAuditor()
		d := newDuel(t, r, 1, mixed, Admission(cell%2), true, WithTraceReporter(a))
		d.run(400)
		d.eng.reap()
		toldAll := !d.eng.stripes[0].closed // what happens after Close is not told
		require.NoError(t, d.eng.Close())
		require.NoError(t, a.wrong)
		require.NotZero(t, a.events)
		for name, left := range a.held {
			if !toldAll || IsSpan(name) { // of one that is done, the spans may be forgotten
				continue
			}
			require.Equal(t, TraceEvt{}, *left, name)
			if !strings.HasSuffix(name, "ystem") && !strings.HasSuffix(name, "ransient") {
				require.True(t, d.eng.kept(name), "%s was not destroyed", name)
			}
		}
	}
}

// kept reports whether a scope of that name is left, because its limit was set
// by hand.
func (m *Manager) kept(name string) bool {
	for _, s := range m.Snapshot().Scopes {
		if s.Name == name {
			return true
		}
	}
	return false
}
