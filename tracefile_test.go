package rcmgr

import (
	"encoding/json"
	"math"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A line of the file is what encoding/json makes of the event that reporters get.
func TestLinesOfATraceFileAreTheJSONOfItsEvents(t *testing.T) {
	r := testRandom(t)
	limits := NewFixedLimiter(DefaultLimits.AutoScale())
	tr, f := &tracer{limits: limits}, newTraceFile(new(disk), limits)
	texts := []string{"/ipfs/id/1.0.0", "", "<svc> & \"x\"\\", "a\nb\x00\x1f\x7f", "bad \xff\xfe", "süß\u2028", strings.Repeat("x", 300)}
	number := func() int64 {
		return int64(int(pick(r, []int64{0, 0, 1, -1, 7, math.MaxInt64, math.MinInt64, r.Int64()})))
	}
	types := []TraceEvtTyp{
		TraceStartEvt, TraceCreateScopeEvt, TraceDestroyScopeEvt, TraceReserveMemoryEvt, TraceBlockReserveMemoryEvt,
		TraceReleaseMemoryEvt, TraceAddStreamEvt, TraceBlockAddStreamEvt, TraceRemoveStreamEvt, TraceAddConnEvt,
		TraceBlockAddConnEvt, TraceRemoveConnEvt, TraceDroppedEvt,
	}
	for range 2000 {
		e := traceEvent{
			typ: pick(r, types), at: pick(r, []int64{0, 1_700_000_000_000_000_000, r.Int64N(2 * time.Now().UnixNano())}),
			priority: uint8(r.IntN(256)), delta: number(), deltaIn: number(), deltaOut: number(), memory: number(),
			streamsIn: number(), streamsOut: number(), connsIn: number(), connsOut: number(), fd: number(),
			name: scopeName{kind: Kind(r.IntN(int(numKinds))), num: r.Int64N(5000), text: pick(r, texts), peer: peerNamed(pick(r, texts))},
		}
		for range r.IntN(3) {
			e.name = spanBelow(e.name, 1+r.Uint32N(3))
		}
		if r.IntN(3) == 0 {
			e.limit = &amounts{number(), number(), number(), number(), number(), number(), number(), number()}
		}
		switch e.typ {
		case TraceStartEvt: // says nothing but the limits
			e = traceEvent{typ: e.typ, at: e.at}
		}
		want, err := json.Marshal(tr.export(&e))
		require.NoError(t, err)
		require.Equal(t, string(want), string(f.append(nil, &e)))
	}
}

// Names are what strangers choose.
func TestATraceFileKeepsABoundedNumberOfTexts(t *testing.T) {
	f := newTraceFile(new(disk), noLimits())
	for i := range 2*cachedTexts + 1 {
		e := traceEvent{typ: TraceCreateScopeEvt, limit: &amounts{int64(i)},
			name: scopeName{kind: KindProtocol, text: strconv.Itoa(i)}}
		require.Contains(t, string(f.append(nil, &e)), `"Name":"protocol:`+strconv.Itoa(i)+`"`)
		require.LessOrEqual(t, max(len(f.names), len(f.limits)), cachedTexts)
	}
	require.Positive(t, min(len(f.names), len(f.limits)))
}
