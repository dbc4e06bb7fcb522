package main

// A scene is one attack, or none, on one manager, with honest peers coming all the
// while, from the first of them until nothing is held any more.

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/multiformats/go-multiaddr"
	"github.com/weir-p2p/rcmgr"
)

// times of a scene, in the order in which they pass.
type times struct {
	before time.Duration // honest peers alone, so that as many go as come
	spread time.Duration // the attack takes what it gets
	count  time.Duration // honest peers that come now are counted
	after  time.Duration // the attack goes on, until these have given up
}

func (t times) end() time.Duration { return t.before + t.spread + t.count + t.after }

// usual times. After, because somebody who is refused to the last waits for half a
// minute in all.
var usual = times{before: time.Minute, spread: 30 * time.Second, count: time.Minute, after: 45 * time.Second}

const (
	honestEvery = time.Second / 30
	triesEvery  = 2 * time.Millisecond
)

// scene says what happens.
type scene struct {
	attack     *attack // nil: none
	subnets    int     // of the attackers
	identities int     // in each of them
	place      func(subnet, host int) multiaddr.Multiaddr
	groups     []group
	every      time.Duration // between two honest peers, on average
}

// outcome is what came of it.
type outcome struct {
	fates []fortune // by group
	held  float64   // the part of the attacked limit that attackers had, on average
}

// all sums up over the groups.
func (o *outcome) all() (sum fortune) {
	for _, f := range o.fates {
		sum.conns.add(f.conns)
		sum.streams.add(f.streams)
		sum.served.add(f.served)
	}
	return sum
}

// play is one scene on one manager. An error is one of making it, or that something
// was left at the end.
func (s *scene) play(v variant, t times, seed uint64) (o outcome, err error) {
	limits, err := limits()
	if err != nil {
		return o, err
	}
	rm, err := v.make(limits)
	if err != nil {
		return o, fmt.Errorf("%s: %w", v.name, err)
	}
	defer rm.Close()
	var c clock
	o.fates = make([]fortune, len(s.groups))
	s.visitors(&c, rm, t, seed, o.fates)
	if s.attack != nil {
		s.besiege(&c, rm, t, seed, &o.held)
	}
	c.run()
	return o, empty(rm)
}

// visitors has honest peers come until the end.
func (s *scene) visitors(c *clock, rm network.ResourceManager, t times, seed uint64, fates []fortune) {
	arrivals := rand.New(rand.NewPCG(seed, 1<<63))
	uncounted := make([]fortune, len(fates))
	n := 0
	var next func()
	next = func() {
		if c.now >= t.end() {
			return
		}
		into := uncounted
		if since := c.now - t.before - t.spread; since >= 0 && since < t.count {
			into = fates
		}
		newVisit(c, rm, seed, n, s.groups, into).begin()
		n++
		c.after(time.Duration(arrivals.ExpFloat64()*float64(s.every)), next)
	}
	next()
}

// besiege has attackers come, and measures what they hold.
func (s *scene) besiege(c *clock, rm network.ResourceManager, t times, seed uint64, held *float64) {
	siege := &siege{
		clock: c, rm: rm, rand: rand.New(rand.NewPCG(seed, 1<<63+1)),
		attack: s.attack, attackers: s.attackers(), end: t.end(),
	}
	c.after(t.before, func() { siege.tick(triesEvery) })
	const looks = 100
	for i := range looks {
		c.after(t.before+t.spread+t.count*time.Duration(i)/looks, func() {
			*held += float64(siege.held) / float64(s.attack.limit) / looks
		})
	}
}

// empty tells what a manager still holds, for all or for a subnet, when everybody has
// gone.
func empty(rm network.ResourceManager) error {
	for _, view := range []func(func(network.ResourceScope) error) error{rm.ViewSystem, rm.ViewTransient} {
		err := view(func(s network.ResourceScope) error {
			if held := s.Stat(); held != (network.ScopeStat{}) {
				return fmt.Errorf("still held: %+v", held)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	if ours, ok := rm.(*rcmgr.Manager); ok {
		for _, s := range ours.SnapshotTop(1).FairShare.Largest {
			if s.System != (rcmgr.SubnetUse{}) || s.Transient != (rcmgr.SubnetUse{}) {
				return fmt.Errorf("still held by a subnet: %+v", s)
			}
		}
	}
	return nil
}
