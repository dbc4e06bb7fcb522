package main

// An attack on one manager: the victim's process, the crowd and the guests. Guests come
// when the attack is at its worst, and the crowd stays until they have gone.

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"

	"github.com/weir-p2p/rcmgr/internal/text"
)

// An attack is the same on all managers.
type attack struct {
	name   string
	about  string   // what the crowd does
	option string   // our option that is meant for the attack
	groups []string // of guests
	asking int      // how many of these, from the first, ask throughout
	crowd  int      // how many attackers there are; 0 is as many as -attackers says
	plan   func(order) (plan, error)
	// before, if it is not nil, runs before the crowd comes.
	before func(context.Context, *show) error
	// attacker runs for each attacker until its context ends.
	attacker func(context.Context, *show, attacker)
	// guests runs for all guests until its context ends.
	guests func(context.Context, *show)
}

var attacks = []*attack{&fairShare, &memoryPressure, &trim, &rate}

// attackNamed returns the attack with this name, or nil if there is none.
func attackNamed(name string) *attack {
	for _, a := range attacks {
		if a.name == name {
			return a
		}
	}
	return nil
}

// attacker is one host of the crowd.
type attacker struct {
	host.Host
	ip net.IP
}

// show is an attack on one manager, while it lasts.
type show struct {
	settings
	attack  *attack
	friends []friend
	groups  []*group
	victim  *process
	to      peer.AddrInfo // the victim's
	hosts   []host.Host   // hosts of the crowd, and of guests that stay

	early     network.Stream // of a guest that came before the crowd
	connected sync.WaitGroup // waits for the crowd to be connected
}

// namedTally is the tally of a group.
type namedTally struct {
	Name string
	tally
}

// outcome is the result of an attack on one manager.
type outcome struct {
	Manager string
	Guests  []namedTally
	Victim  report
}

// play runs an attack on the manager of one column.
func play(ctx context.Context, s settings, a *attack, column int, progress io.Writer) (outcome, error) {
	sh := &show{settings: s, attack: a}
	defer sh.leave()
	asked, err := newHost(homeIP())
	if err != nil {
		return outcome{}, err
	}
	defer asked.Close() // later, because the victim asks it to the end
	serveEcho(asked)
	if err := asked.Network().Listen(multiaddr.StringCast(listenAddr)); err != nil {
		return outcome{}, err
	}
	o, err := sh.order(column, asked)
	if err != nil {
		return outcome{}, err
	}
	if sh.victim, err = startVictim(o); err != nil {
		return outcome{}, err
	}
	defer sh.victim.stop()
	first, err := sh.victim.ask(howIsIt)
	if err != nil {
		return outcome{}, err
	}
	sh.to = first.Victim
	if err := sh.run(ctx, progress); err != nil {
		return outcome{}, err
	}
	sh.leave()
	last, err := sh.victim.ask(whatsLeft)
	if err != nil {
		return outcome{}, err
	}
	result := outcome{Manager: a.column(column), Victim: last}
	for _, g := range sh.groups {
		result.Guests = append(result.Guests, namedTally{g.name, g.soFar()})
	}
	return result, nil
}

// order returns the order for the victim, which names the host that it is to ask.
func (sh *show) order(column int, asks host.Host) (order, error) {
	o := order{Attack: sh.attack.name, Column: column, Attackers: sh.attackers,
		Memory: int64(sh.memory) << 20, Asks: *host.InfoFromHost(asks)}
	for range numFriends {
		f, err := newFriend()
		if err != nil {
			return o, err
		}
		sh.friends = append(sh.friends, f)
		o.Friends = append(o.Friends, f.id)
	}
	for _, name := range sh.attack.groups {
		sh.groups = append(sh.groups, &group{name: name})
	}
	return o, nil
}

// run returns when the guests and the crowd have gone.
func (sh *show) run(ctx context.Context, progress io.Writer) error {
	if sh.attack.before != nil {
		if err := sh.attack.before(ctx, sh); err != nil {
			return err
		}
	}
	attackers, err := sh.newCrowd()
	if err != nil {
		return err
	}
	var crowd sync.WaitGroup
	defer crowd.Wait()
	attacking, leave := context.WithCancel(ctx)
	defer leave()
	for _, a := range attackers {
		crowd.Go(func() { sh.attack.attacker(attacking, sh, a) })
	}
	if err := sh.untilAtWorst(ctx); err != nil {
		return err
	}
	var guests sync.WaitGroup
	defer guests.Wait()
	visiting, end := context.WithCancel(ctx)
	defer end()
	guests.Go(func() { sh.attack.guests(visiting, sh) })
	for start := time.Now(); time.Since(start) < sh.duration || !sh.haveAsked(); {
		if !pause(ctx, min(sh.duration, time.Second)) {
			return ctx.Err()
		}
		r, err := sh.victim.ask(howIsIt)
		if err != nil {
			return err
		}
		fmt.Fprintf(progress, "%4.1f s of %v · %s\n", time.Since(start).Seconds(), sh.duration, sh.line(r))
	}
	return nil
}

func (sh *show) newCrowd() (attackers []attacker, err error) {
	for n := range cmp.Or(sh.attack.crowd, sh.attackers) {
		h, err := newHost(crowdIP(n))
		if err != nil {
			return nil, err
		}
		sh.hosts = append(sh.hosts, h)
		attackers = append(attackers, attacker{h, crowdIP(n)})
	}
	sh.connected.Add(len(attackers))
	return attackers, nil
}

// haveAsked reports whether guests have asked often enough for a result.
func (sh *show) haveAsked() bool {
	const enough = 10
	for _, g := range sh.groups[:sh.attack.asking] {
		if g.soFar().asked() < enough {
			return false
		}
	}
	return true
}

const (
	between = 50 * time.Millisecond  // from one request of a guest to its next
	again   = 100 * time.Millisecond // from one attempt of an attacker to its next
)

// visit lets guest n of a group come, ask and go, as a new host.
func (sh *show) visit(ctx context.Context, group, n int, identity ...libp2p.Option) {
	h, err := newHost(guestIP(group, n), identity...)
	if err != nil {
		return
	}
	defer h.Close()
	sh.groups[group].do(ctx, func(ctx context.Context) error { return come(ctx, h, sh.to) })
}

// untilAtWorst waits until the attack is at its worst.
func (sh *show) untilAtWorst(ctx context.Context) error {
	const most = time.Minute
	for end := time.Now().Add(most); time.Now().Before(end); {
		r, err := sh.victim.ask(howIsIt)
		if err != nil || r.AtWorst {
			return err
		}
		if !pause(ctx, 20*time.Millisecond) {
			return ctx.Err()
		}
	}
	return fmt.Errorf("the attack is not at its worst within %v", most)
}

// line returns a summary of the attack so far.
func (sh *show) line(r report) string {
	served, asked, refused := 0, 0, 0
	for _, g := range sh.groups {
		t := g.soFar()
		served += len(t.Took)
		asked += t.asked()
	}
	for _, n := range r.Crowd {
		refused += n
	}
	return fmt.Sprintf("guests served %d of %d · crowd refused %s · %s in use", served, asked, text.Plural(refused, "time"), mebibytes(r.Memory.Process))
}

// leave closes all hosts that are left. It may be called again.
func (sh *show) leave() {
	for _, h := range sh.hosts {
		h.Close()
	}
	sh.hosts = nil
}
