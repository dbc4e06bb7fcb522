// Package replay reads the trace of a resource manager, ours or go-libp2p's, and finds out
// what other limits would have admitted and refused. A trace has no addresses, so gates are
// not asked. Connections and streams that were in an allowlisted scope may use it again.
//
// A connection or stream that the trace refused does not appear in it again. If other
// limits admit it, it behaves like others of its kind: it gets its peer or protocol after
// the median of their times, and ends after the median of their lives. It has a peer, or
// a protocol, of its own. Memory that was refused is reserved, and released at once.
package replay

// The lines of a trace. Both managers write the same members. They mark spans in
// different ways, and only ours has an event for a refusal by a gate.

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/weir-p2p/rcmgr"
)

// Event is the part of a rcmgr.TraceEvt that is read.
type Event struct {
	Time     time.Time
	Type     rcmgr.TraceEvtTyp
	Scope    Class
	Name     string
	Priority uint8
	Delta    int64
	DeltaIn  int
	DeltaOut int

	Limit json.RawMessage // of a scope that was created

	// What the scope holds after the event.
	Memory                                       int64
	StreamsIn, StreamsOut, ConnsIn, ConnsOut, FD int64
}

// Class says which scope an event is about.
type Class struct {
	Class                                 string
	Conn, Stream, Peer, Service, Protocol string
	Span                                  string
}

// OfSpan reports whether the event is about a span, which has no limit of its own.
func (e *Event) OfSpan() bool { return e.depth() > 0 }

// depth returns the number of spans in the name of the scope: 0 for a scope, 1 for its
// span.
func (e *Event) depth() int {
	if e.Scope.Span != "" {
		return 1 + strings.Count(e.Scope.Span, ".")
	}
	return strings.Count(spanEnd.FindString(e.Name), ".span-")
}

var spanEnd = regexp.MustCompile(`(\.span-\d+)+$`)

// owner returns the name of the scope without its spans.
func (e *Event) owner() string {
	name := e.Name
	for range e.depth() {
		name = name[:strings.LastIndex(name, ".span-")]
	}
	return name
}

// dir returns the direction of the connections or streams that are added or removed.
func (e *Event) dir() network.Direction {
	if e.DeltaIn != 0 {
		return network.DirInbound
	}
	return network.DirOutbound
}

var knownTypes = map[rcmgr.TraceEvtTyp]bool{
	rcmgr.TraceStartEvt: true, rcmgr.TraceDroppedEvt: true,
	rcmgr.TraceCreateScopeEvt: true, rcmgr.TraceDestroyScopeEvt: true,
	rcmgr.TraceReserveMemoryEvt: true, rcmgr.TraceBlockReserveMemoryEvt: true, rcmgr.TraceReleaseMemoryEvt: true,
	rcmgr.TraceAddStreamEvt: true, rcmgr.TraceBlockAddStreamEvt: true, rcmgr.TraceRemoveStreamEvt: true,
	rcmgr.TraceAddConnEvt: true, rcmgr.TraceBlockAddConnEvt: true, rcmgr.TraceRemoveConnEvt: true,
}

// maxLine is the largest length of a line. The first line has all limits.
const maxLine = 64 << 20

// readEvents calls f with each event. cut reports that the trace ends in the middle of an
// event, as it does when the process was killed.
func readEvents(r io.Reader, f func(*Event)) (cut bool, err error) {
	in := bufio.NewReader(r)
	if magic, _ := in.Peek(2); bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		unzipped, err := gzip.NewReader(in)
		if err != nil {
			return false, err
		}
		in = bufio.NewReader(unzipped)
	}
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, maxLine)
	n, read := 0, 0
	cutOff := func() (bool, error) {
		if read == 0 {
			return false, errors.New("it is cut off before the end of its first event")
		}
		return true, nil
	}
	for lines.Scan() {
		n++
		var e Event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			text := len(lines.Bytes())
			if isLast := !lines.Scan(); isLast && (errors.Is(lines.Err(), io.ErrUnexpectedEOF) || endsEarly(err, text) && lines.Err() == nil) {
				return cutOff()
			}
			return false, fmt.Errorf("line %d: expected an event of a trace: %w", n, err)
		}
		switch {
		case e.Type == "" || e.Time.IsZero():
			return false, fmt.Errorf("line %d: expected an event of a trace, which has Time and Type", n)
		case !knownTypes[e.Type]:
			return false, fmt.Errorf("line %d: no such type of event: %q; the trace may be of a later version", n, e.Type)
		}
		f(&e)
		read++
	}
	switch err := lines.Err(); {
	case errors.Is(err, io.ErrUnexpectedEOF):
		return cutOff()
	case errors.Is(err, bufio.ErrTooLong):
		return false, fmt.Errorf("line %d has more than %d MiB, which no event has", n+1, maxLine>>20)
	case err != nil:
		return false, fmt.Errorf("line %d: %w", n+1, err)
	case n == 0:
		return false, errors.New("it is empty")
	}
	return false, nil
}

// endsEarly reports whether a text of so many bytes is not JSON because its end is missing.
func endsEarly(err error, bytes int) bool {
	var at *json.SyntaxError
	return errors.As(err, &at) && at.Offset >= int64(bytes)
}
