package main

// One peer that opens and closes streams as fast as it can. It holds few at a time, so no limit
// stops it, but the victim decides about each, and reads from it. A friend that came before asks
// on new streams meanwhile, a few each second.

import (
	"context"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/weir-p2p/rcmgr"
)

const (
	streamRate  = 100 // inbound streams a second that each peer may open
	streamBurst = 400 // and as many at once
	inFlight    = 16  // streams that the attacker opens and closes at a time
)

var rate = attack{
	name:     "rate",
	about:    "one peer that opens and closes streams as fast as it can",
	option:   "Rates",
	groups:   []string{"friend"},
	asking:   1,
	crowd:    1,
	plan:     planRate,
	before:   comeBefore,
	attacker: openAndClose,
	guests:   askOften,
}

func planRate(order) (plan, error) {
	return plan{
		rates:   rcmgr.Rates{StreamsInbound: rcmgr.Rate{PerSecond: streamRate, Burst: streamBurst}},
		atWorst: func(r report) bool { return r.Streams.Tried > 2*streamBurst },
	}, nil
}

// comeBefore connects the friend before the crowd comes.
func comeBefore(ctx context.Context, sh *show) error {
	h, err := newHost(guestIP(0, 0))
	if err != nil {
		return err
	}
	sh.hosts = append(sh.hosts, h)
	return connect(ctx, h, sh.to)
}

// askOften lets the friend ask, each time on a new stream.
func askOften(ctx context.Context, sh *show) {
	for pause(ctx, between) {
		sh.groups[0].do(ctx, func(ctx context.Context) error { return ask(ctx, sh.hosts[0], sh.to.ID) })
	}
}

// openAndClose opens streams, and resets each at once.
func openAndClose(ctx context.Context, sh *show, a attacker) {
	var all sync.WaitGroup
	defer all.Wait()
	for range inFlight {
		all.Go(func() {
			for ctx.Err() == nil {
				if s, err := a.Network().NewStream(asConnected(ctx), sh.to.ID); err == nil {
					s.Reset()
				} else if pause(ctx, again) {
					connect(ctx, a, sh.to)
				}
			}
		})
	}
}

// streamCounts counts the streams of the crowd that reach the victim's manager.
type streamCounts struct {
	Tried, Admitted int
	Took            time.Duration // from the first to the last
	// Over is how many more than burst + rate × t were admitted, over the time t in which it is
	// the most. It is not more than 0 where the rate is held. Without a rate it is that of the
	// rate which the option has.
	Over int

	began  time.Time
	lowest float64 // of the number admitted before a time, without what the rate gives until then
}

// add counts one stream. The times are those before and after the manager decided, so that the time
// between two streams is never taken for shorter than it was.
func (c *streamCounts) add(before, after time.Time, admitted bool) {
	if c.Tried == 0 {
		c.began, c.Over = before, -streamBurst
	}
	c.Tried++
	c.Took = after.Sub(c.began)
	if !admitted {
		return
	}
	if at := float64(c.Admitted) - streamRate*before.Sub(c.began).Seconds(); c.Admitted == 0 || at < c.lowest {
		c.lowest = at
	}
	c.Admitted++
	most := float64(c.Admitted) - streamRate*c.Took.Seconds() - c.lowest - streamBurst
	c.Over = max(c.Over, int(most))
}

// eachSecond returns how many streams were tried each second.
func (c streamCounts) eachSecond() int { return int(float64(c.Tried) / max(c.Took.Seconds(), 1e-9)) }

// paced returns the counts of the crowd's streams.
func (o *observer) paced() streamCounts {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.streams
}

// countStream counts a stream if it is the crowd's.
func (o *observer) countStream(p peer.ID, dir network.Direction, before time.Time, err error) {
	after := time.Now()
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.attackers[p] && dir == network.DirInbound {
		o.streams.add(before, after, err == nil)
	}
}

// streamColumns are the columns of the table about the crowd's streams.
func streamColumns() []column {
	of := func(f func(streamCounts) int) func(outcome) string {
		return func(o outcome) string { return count(f(o.Victim.Streams)) }
	}
	return []column{
		{"tried", of(func(c streamCounts) int { return c.Tried })},
		{"each second", of(streamCounts.eachSecond)},
		{"admitted", of(func(c streamCounts) int { return c.Admitted })},
		{"over the rate", of(func(c streamCounts) int { return max(0, c.Over) })},
	}
}
