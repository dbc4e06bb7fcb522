package rcmgr

// What connections and streams cost by themselves. A connection that reserves nothing
// still takes memory: a goroutine or two, buffers, the state of its encryption. If the
// configuration sets a cost, opening a connection or stream reserves it, and Done
// releases it.

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
)

// Costs is the memory that each connection and each stream takes by itself, in addition
// to what is reserved on it. It counts in all scopes of the connection or stream from the
// moment it is opened, at the cost in force at that moment. The zero value leaves costs
// to the defaults, which are none.
type Costs struct {
	Conn   Cost `json:",omitempty"`
	Stream Cost `json:",omitempty"`
}

// Cost is a number of bytes. Its zero value leaves the cost to the defaults. In JSON it
// is a number, with or without quotes, or "none".
type Cost int64

// NoCost is a cost of nothing, whatever the defaults are. The number 0 in JSON is read as
// NoCost.
const NoCost Cost = -1

// MarshalJSON writes a number or "none".
func (c Cost) MarshalJSON() ([]byte, error) {
	if c == NoCost {
		return []byte(`"none"`), nil
	}
	return strconv.AppendInt(nil, int64(c), 10), nil
}

// UnmarshalJSON reads a number, digits in quotes, or "none". If it fails, c does not
// change.
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

// bytes returns the cost in bytes.
func (c Cost) bytes() int64 { return max(0, int64(c)) }

// over returns upper with everything that it leaves to the defaults taken from lower. The
// result shares nothing with them.
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

// check adds an error for each cost that is negative, or above the memory limit of a
// single connection or stream: with that cost none could be opened.
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

// perOpening returns the costs of opening one connection and one stream, in bytes.
func (c *Costs) perOpening() (conn, stream int64) {
	if c == nil {
		return 0, 0
	}
	return c.Conn.bytes(), c.Stream.bytes()
}
