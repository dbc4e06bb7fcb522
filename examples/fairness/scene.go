package main

// A scene is one attack, or none, on one manager, while honest peers come. It lasts from
// the first of them until nothing is held any more.

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/multiformats/go-multiaddr"
	"github.com/weir-p2p/rcmgr"
	"github.com/weir-p2p/rcmgr/internal/fakehost"
)

// times are the periods of a scene, in their order.
type times struct {
	before time.Duration // honest peers come alone, until as many go as come
	spread time.Duration // the attack takes all that it can get
	count  time.Duration // honest peers that come in this period are counted
	after  time.Duration // the attack goes on until these have gone or given up
}

func (t times) end() time.Duration { return t.before + t.spread + t.count + t.after }

// usual are the times of all scenes. after is long because a peer that is refused every
// time waits for half a minute in all.
var usual = times{before: time.Minute, spread: 30 * time.Second, count: time.Minute, after: 45 * time.Second}

const (
	honestEvery = time.Second / 30
	triesEvery  = 2 * time.Millisecond
)

// scene is what happens in a scene.
type scene struct {
	attack     *attack // nil if there is none
	subnets    int     // of the attackers
	identities int     // in each of them
	place      func(subnet, host int) multiaddr.Multiaddr
	groups     []group
	every      time.Duration // between two honest peers, on average
	tries      time.Duration // between two tries of attackers; 0 is triesEvery
}

// outcome is the result of a scene on one manager.
type outcome struct {
	fates []fortune // by group
	held  float64   // the fraction of the attacked limit that attackers held, on average
}

// all returns the sum over all groups.
func (o *outcome) all() (sum fortune) {
	for _, f := range o.fates {
		sum.conns.add(f.conns)
		sum.streams.add(f.streams)
		sum.served.add(f.served)
		sum.lost += f.lost
	}
	return sum
}

// play plays the scene on one manager. It returns an error if the manager cannot be made,
// or if something is still held at the end.
func (s *scene) play(v variant, t times, seed uint64) (o outcome, err error) {
	limits, err := limits()
	if err != nil {
		return o, err
	}
	var c clock
	rm, err := v.make(limits, &c)
	if err != nil {
		return o, fmt.Errorf("%s: %w", v.name, err)
	}
	defer rm.Close()
	host := &fakehost.Host{RM: rm, Now: c.time}
	if m, ok := rm.(*rcmgr.Manager); ok {
		m.AttachHost(host)
		m.AttachHandshakes(func(yield func(rcmgr.Handshake) bool) {
			for _, h := range host.Handshakes() {
				if !yield(h) {
					return
				}
			}
		})
		c.each = func() { m.MakeRoom() }
	}
	o.fates = make([]fortune, len(s.groups))
	s.visitors(&c, host, t, seed, o.fates)
	if s.attack != nil {
		s.besiege(&c, host, t, seed, &o.held)
	}
	c.run()
	return o, empty(rm)
}

// visitors lets honest peers come until the end.
func (s *scene) visitors(c *clock, host *fakehost.Host, t times, seed uint64, fates []fortune) {
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
		newVisit(c, host, seed, n, s.groups, into).begin()
		n++
		c.after(time.Duration(arrivals.ExpFloat64()*float64(s.every)), next)
	}
	next()
}

// besiege lets attackers come, and measures what they hold.
func (s *scene) besiege(c *clock, host *fakehost.Host, t times, seed uint64, held *float64) {
	siege := &siege{
		clock: c, host: host, rand: rand.New(rand.NewPCG(seed, 1<<63+1)),
		attack: s.attack, attackers: s.attackers(), end: t.end(),
	}
	c.after(t.before, func() { siege.tick(cmp.Or(s.tries, triesEvery)) })
	const looks = 100
	for i := range looks {
		c.after(t.before+t.spread+t.count*time.Duration(i)/looks, func() {
			*held += float64(siege.held) / float64(s.attack.limit) / looks
		})
	}
}

// empty returns an error if the manager still holds something, for all or for a subnet,
// when all peers have gone.
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
