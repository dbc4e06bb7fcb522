package rcmgr

// The JSON of a Snapshot: amounts grouped by limit, and "unlimited" as a word.

import (
	"encoding/json"
	"math"
)

// scopeJSON is the JSON form of a ScopeState.
type scopeJSON struct {
	Name   string
	Kind   Kind
	ID     string `json:",omitempty"`
	Limits quantities[limitJSON, limitJSON]
	// TransientStreamsInbound and TransientStreamsOutbound are those of ScopeState.
	TransientStreamsInbound  int         `json:",omitempty"`
	TransientStreamsOutbound int         `json:",omitempty"`
	Rates                    []RateState `json:",omitempty"`
}

type limitJSON struct {
	Limit    limitNumber
	Use      int64
	Percent  *float64 `json:",omitempty"`
	Peak     int64
	Refusals uint64 `json:",omitempty"`
	// WouldRefuse and Tight are those of ScopeState.
	WouldRefuse uint64 `json:",omitempty"`
	Tight       bool   `json:",omitempty"`
}

// MarshalJSON writes the state with its numbers grouped by limit, as described at
// ScopeState.
func (s ScopeState) MarshalJSON() ([]byte, error) {
	out := scopeJSON{Name: s.Name, Kind: s.Kind, ID: s.ID, Rates: s.Rates,
		TransientStreamsInbound: s.TransientStreamsInbound, TransientStreamsOutbound: s.TransientStreamsOutbound}
	limits := fieldsByDim(&out.Limits)
	for d, u := range s.limitUses() {
		l := limitJSON{Limit: limitNumber(u.Limit), Use: u.Use, Peak: u.Peak,
			Refusals: u.Refusals, WouldRefuse: u.WouldRefuse, Tight: u.Tight}
		if percent, ok := u.Percent(); ok {
			rounded := math.Round(percent*100) / 100
			l.Percent = &rounded
		}
		*limits[d] = l
	}
	return json.Marshal(out)
}

// UnmarshalJSON reads what MarshalJSON writes. If it returns an error, s is unchanged.
func (s *ScopeState) UnmarshalJSON(b []byte) error {
	var in scopeJSON
	if err := json.Unmarshal(b, &in); err != nil {
		return err
	}
	c := scopeCut{}
	for i, l := range byDim(in.Limits) {
		d := dim(i)
		if d != dimMemory { // the other limits are ints, which may have 32 bits
			l.Limit = min(l.Limit, math.MaxInt)
		}
		c.limit[d], c.use[d], c.peak[d], c.tight[d] = int64(l.Limit), l.Use, l.Peak, l.Tight
		c.denied.refused[d], c.denied.would[d] = l.Refusals, l.WouldRefuse
	}
	out := c.state(0)
	out.Name, out.Kind, out.ID, out.Rates = in.Name, in.Kind, in.ID, in.Rates
	out.TransientStreamsInbound, out.TransientStreamsOutbound = in.TransientStreamsInbound, in.TransientStreamsOutbound
	*s = out
	return nil
}

// limitNumber is a limit whose JSON is a number, "unlimited" or "blockAll".
type limitNumber int64

func (l limitNumber) MarshalJSON() ([]byte, error) {
	if v := limitVal64(int64(l)); v == Unlimited64 || v == BlockAllLimit64 {
		return v.MarshalJSON()
	}
	return json.Marshal(int64(l))
}

func (l *limitNumber) UnmarshalJSON(b []byte) error {
	var v LimitVal64
	if err := v.UnmarshalJSON(b); err != nil {
		return err
	}
	*l = limitNumber(v.Build(0))
	return nil
}
