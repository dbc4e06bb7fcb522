package rcmgr

// The file of a trace: compressed, with a line of JSON for each event. Each line is, byte
// for byte, what encoding/json makes of a TraceEvt. Lines are put together by hand,
// because most of each has been written before and is kept.

import (
	"bufio"
	"cmp"
	"compress/gzip"
	"encoding/json"
	"io"
	"strconv"
	"time"
)

type traceFile struct {
	line   []byte
	gzip   *gzip.Writer
	buffer *bufio.Writer
	out    io.WriteCloser

	// start is the JSON of the manager's Limiter, made together with the manager, because
	// the Limiter is other people's code.
	start []byte
	// names has the members of lines that name scopes other than connections and streams;
	// limits has those with a limit.
	names  jsonCache[scopeName]
	limits jsonCache[amounts]
}

func newTraceFile(out io.WriteCloser, limits Limiter) *traceFile {
	f := &traceFile{out: out, buffer: bufio.NewWriterSize(out, 64<<10)}
	f.gzip, _ = gzip.NewWriterLevel(f.buffer, gzip.BestSpeed) // a valid level
	g := guard{callback: callbackOf("Limiter", limits), then: "its limits are not in the trace"}
	var text []byte
	var err error
	if fault := g.try(func() { text, err = json.Marshal(limits) }); fault != nil {
		err = fault
	}
	if err != nil {
		text = appendJSONText(nil, "cannot be written: "+err.Error())
	}
	f.start = text
	return f
}

func (f *traceFile) write(e *traceEvent) error {
	f.line = append(f.append(f.line[:0], e), '\n')
	_, err := f.gzip.Write(f.line)
	return err
}

// append appends the JSON of the TraceEvt that export would return.
func (f *traceFile) append(b []byte, e *traceEvent) []byte {
	b = append(b, `{"Time":"`...)
	b = time.Unix(0, e.at).AppendFormat(b, time.RFC3339Nano)
	b = append(b, `","Type":"`...)
	b = append(b, e.typ...)
	b = append(b, '"')
	switch e.typ {
	case TraceStartEvt:
		b = append(b, `,"Limit":`...)
		return append(append(b, f.start...), '}')
	case TraceDroppedEvt:
	default:
		if e.name.num == 0 {
			b = append(b, f.names.get(e.name, traceNameJSON)...)
		} else {
			b = append(b, traceNameJSON(e.name)...) // of a connection or stream, which is soon closed
		}
		if e.limit != nil {
			b = append(b, f.limits.get(*e.limit, traceLimitJSON)...)
		}
	}
	for _, member := range [...]struct {
		key   string
		value int64
	}{
		{`,"Priority":`, int64(e.priority)},
		{`,"Delta":`, e.delta},
		{`,"DeltaIn":`, e.deltaIn},
		{`,"DeltaOut":`, e.deltaOut},
		{`,"Memory":`, e.memory},
		{`,"StreamsIn":`, e.streamsIn},
		{`,"StreamsOut":`, e.streamsOut},
		{`,"ConnsIn":`, e.connsIn},
		{`,"ConnsOut":`, e.connsOut},
		{`,"FD":`, e.fd},
	} {
		if member.value != 0 {
			b = strconv.AppendInt(append(b, member.key...), member.value, 10)
		}
	}
	return append(b, '}')
}

func traceNameJSON(n scopeName) []byte {
	b := classOfScope(&n).appendJSON([]byte(`,"Scope":`))
	return appendJSONText(append(b, `,"Name":`...), n.String())
}

func traceLimitJSON(a amounts) []byte {
	text, _ := json.Marshal(a.baseLimit()) // cannot fail for numbers
	return append([]byte(`,"Limit":`), text...)
}

// jsonCache has the JSON of a bounded number of values.
type jsonCache[K comparable] map[K][]byte

// cachedTexts bounds a jsonCache. A full one is emptied; values in use soon return.
const cachedTexts = 4096

func (c *jsonCache[K]) get(k K, text func(K) []byte) []byte {
	if b, ok := (*c)[k]; ok {
		return b
	}
	if *c == nil || len(*c) >= cachedTexts {
		*c = make(jsonCache[K])
	}
	b := text(k)
	(*c)[k] = b
	return b
}

// flush writes what is buffered, so that it can be read from the file.
func (f *traceFile) flush() error {
	return cmp.Or(f.gzip.Flush(), f.buffer.Flush())
}

// close writes the rest of the file. It logs a failure, which no later call could report.
func (f *traceFile) close() {
	if f == nil {
		return
	}
	if err := cmp.Or(f.gzip.Close(), f.buffer.Flush(), f.out.Close()); err != nil {
		log.Error("the end of the resource manager's trace file is lost", "err", err)
	}
}
