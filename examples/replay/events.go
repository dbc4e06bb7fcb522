package main

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

// event is the part of a rcmgr.TraceEvt that is read.
type event struct {
	Time     time.Time
	Type     rcmgr.TraceEvtTyp
	Scope    class
	Name     string
	Priority uint8
	Delta    int64
	DeltaIn  int
	DeltaOut int
}

// class says which scope an event is about.
type class struct {
	Class                                 string
	Conn, Stream, Peer, Service, Protocol string
	Span                                  string
}

// depth returns the number of spans in the name of the scope: 0 for a scope, 1 for its
// span.
func (e *event) depth() int {
	if e.Scope.Span != "" {
		return 1 + strings.Count(e.Scope.Span, ".")
	}
	return strings.Count(spanEnd.FindString(e.Name), ".span-")
}

var spanEnd = regexp.MustCompile(`(\.span-\d+)+$`)

// owner returns the name of the scope without its spans.
func (e *event) owner() string {
	name := e.Name
	for range e.depth() {
		name = name[:strings.LastIndex(name, ".span-")]
	}
	return name
}

// dir returns the direction of the connections or streams that are added or removed.
func (e *event) dir() network.Direction {
	if e.DeltaIn != 0 {
		return network.DirInbound
	}
	return network.DirOutbound
}

// maxLine is the largest length of a line. The first line has all limits.
const maxLine = 64 << 20

// readEvents calls f with each event. cut reports that the trace ends in the middle of an
// event, as it does when the process was killed.
func readEvents(r io.Reader, f func(*event)) (cut bool, err error) {
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
	n := 0
	for lines.Scan() {
		n++
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			if !lines.Scan() && errors.Is(lines.Err(), io.ErrUnexpectedEOF) {
				return true, nil
			}
			return false, fmt.Errorf("line %d: expected an event of a trace: %w", n, err)
		}
		if e.Type == "" || e.Time.IsZero() {
			return false, fmt.Errorf("line %d: expected an event of a trace, which has Time and Type", n)
		}
		f(&e)
	}
	switch err := lines.Err(); {
	case errors.Is(err, io.ErrUnexpectedEOF):
		return true, nil
	case err != nil:
		return false, fmt.Errorf("line %d: %w", n+1, err)
	case n == 0:
		return false, errors.New("it is empty")
	}
	return false, nil
}
