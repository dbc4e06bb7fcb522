package rcmgr

// What connections and streams cost by themselves. A connection that reserves
// nothing still takes memory: a goroutine or two, buffers, the state of its
// encryption. Where that is said, opening one reserves it, and the end of it
// gives it back.

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
)

// Costs says what a connection and a stream take in memory by themselves, beside
// what is reserved at them. It is counted in all their scopes from the moment
// they are opened, at the cost that is in force then. Its zero value leaves it to
// the defaults, which is none.
type Costs struct {
	Conn   Cost `json:",omitempty"`
	Stream Cost `json:",omitempty"`
}

// Cost is a number of bytes. Its zero value leaves the cost to the defaults. In
// JSON it is a number, with or without quotes, or "none".
type Cost int64

// NoCost is nothing, whatever the defaults say. In JSON, the number 0 is that, too.
const NoCost Cost = -1

// MarshalJSON writes a number or "none".
func (c Cost) MarshalJSON() ([]byte, error) {
	if c == NoCost {
		return []byte(`"none"`), nil
	}
	return strconv.AppendInt(nil, int64(c), 10), nil
}

// UnmarshalJSON reads a number, digits in quotes, or "none". On an error c is as
// before.
func (c *Cost) UnmarshalJSON(b []byte) error {
	if string(b) == `"none"` {
		*c = NoCost
		return nil
	}
	n, err := parseBytes(b)
	switch {
	case err != nil:
		return fmt.Errorf("not a cost: %w", err)
	case n < 0:
		return errors.New("not a cost: it is negative")
	}
	*c = cmp.Or(Cost(n), NoCost)
	return nil
}

var _ json.Unmarshaler = (*Cost)(nil)

// bytes gives the cost itself.
func (c Cost) bytes() int64 { return max(0, int64(c)) }

// over gives upper with what is left to the defaults as it is in lower. The
// outcome shares nothing with them.
func (upper *Costs) over(lower *Costs) *Costs {
	if upper == nil && lower == nil {
		return nil
	}
	var out Costs
	for _, c := range []*Costs{upper, lower} {
		if c != nil {
			out.Conn, out.Stream = cmp.Or(out.Conn, c.Conn), cmp.Or(out.Stream, c.Stream)
		}
	}
	return &out
}

// check adds what is wrong. What is above the limit of memory of a single connection
// or stream could never be opened.
func (c *Costs) check(errs *configErrors, connLimit, streamLimit int64) {
	if c == nil {
		return
	}
	for _, one := range []struct {
		name  string
		cost  Cost
		limit int64
	}{{"Conn", c.Conn, connLimit}, {"Stream", c.Stream, streamLimit}} {
		switch {
		case one.cost < NoCost:
			errs.addf("Costs."+one.name, "is %d, it must not be negative", one.cost)
		case one.cost.bytes() > one.limit:
			errs.add(&ConfigError{Path: "Costs." + one.name, also: []string{one.name + ".Memory"},
				Err: fmt.Errorf("is %d, above %s.Memory, which is %d: none could be opened", one.cost, one.name, one.limit)})
		}
	}
}

// perOpening returns what opening one costs, in bytes.
func (c *Costs) perOpening() (conn, stream int64) {
	if c == nil {
		return 0, 0
	}
	return c.Conn.bytes(), c.Stream.bytes()
}
