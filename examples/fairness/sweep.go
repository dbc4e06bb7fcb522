package main

// The scenes: every attack from more and more subnets, on every manager, and special
// cases that show which honest peers the rule affects, and which attackers it misses.

import (
	"cmp"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/multiformats/go-multiaddr"
)

// identitiesInAll is the number of identities that the subnets of the attackers share.
const identitiesInAll = 4096

// subnetsTried has the numbers of subnets that attackers come from.
var subnetsTried = []int{1, 4, 16, 64, 256, 1024, 4096}

// peace is a scene of honest peers alone, of which hardly any two share a subnet.
var peace = scene{groups: []group{{"all", 1, anywhere}}, every: honestEvery}

func attackFrom(a *attack, subnets, identities int) scene {
	s := peace
	s.attack, s.subnets, s.identities, s.place = a, subnets, identities, attackersIn24
	return s
}

// at returns the scene with attackers in other places.
func (s scene) at(place func(subnet, host int) multiaddr.Multiaddr) scene {
	s.place = place
	return s
}

// among returns the scene with other honest peers.
func (s scene) among(groups ...group) scene {
	s.groups = groups
	return s
}

// wanting returns the scene with as many honest peers as take a fraction of the system's
// connections.
func (s scene) wanting(part float64) scene {
	stay := handshakeTime + negotiationTime + usedFor
	s.every = time.Duration(float64(stay) / (part * systemConns))
	return s
}

// story is a scene, and its outcome on each variant.
type story struct {
	title string // of a story that is not in a series
	scene
	outcomes []outcome
}

// series is one attack from more and more subnets.
type series struct {
	title   string
	attack  *attack
	stories []*story
}

// plan is everything that is played.
type plan struct {
	sweeps   []series // first one for each attack, in their order
	specials []*story
}

func newPlan() plan { return plan{sweeps(), specials()} }

// stories returns each story once.
func (p *plan) stories() (all []*story) {
	all = append(all, p.specials...)
	for _, s := range p.sweeps {
		for _, story := range s.stories {
			if !slices.Contains(all, story) {
				all = append(all, story)
			}
		}
	}
	return all
}

// sweeps returns a series for each attack, one in which attackers have one identity
// in each subnet, and one in which their subnets are far from each other.
func sweeps() (all []series) {
	calm := &story{scene: peace}
	for _, a := range attacks {
		s := series{title: a.title, attack: a, stories: []*story{calm}}
		for _, n := range subnetsTried {
			s.stories = append(s.stories, &story{scene: attackFrom(a, n, identitiesInAll/n)})
		}
		all = append(all, s)
	}
	alone := series{title: streams.title + ", by one identity in each subnet", attack: streams}
	for _, n := range subnetsTried[:len(subnetsTried)-1] { // with as many subnets as identities, each has one anyway
		alone.stories = append(alone.stories, &story{scene: attackFrom(streams, n, 1)})
	}
	apart := series{title: streams.title + ", where no two subnets are of one network", attack: streams}
	for _, n := range subnetsTried {
		apart.stories = append(apart.stories, &story{scene: attackFrom(streams, n, identitiesInAll/n).at(attackersEverywhere)})
	}
	return append(all, alone, apart)
}

// specials returns stories with honest peers that share a subnet, with each other or with
// attackers, and with attackers that the rule does not see.
func specials() []*story {
	shared := []group{{"elsewhere", 0.8, anywhere}, {"a fifth, in one /24", 0.2, oneSubnet}}
	beside := []group{{"elsewhere", 0.8, anywhere}, {"a fifth, among attackers", 0.2, firstAttackers}}
	near := []group{{"elsewhere", 0.8, anywhere}, {"a fifth, in their /16", 0.2, nearAttackers}}
	together := group{"all, in one /24", 1, oneSubnet}
	return []*story{
		{title: "streams, 4 subnets", scene: attackFrom(streams, 4, 1024).among(shared...)},
		{title: "streams, 64 subnets", scene: attackFrom(streams, 64, 64).among(shared...)},
		{title: "connections, 4 subnets", scene: attackFrom(connections, 4, 1024).among(shared...)},
		{title: "connections, 64 subnets", scene: attackFrom(connections, 64, 64).among(shared...)},
		{title: "streams, 4 subnets", scene: attackFrom(streams, 4, 1024).among(beside...)},
		{title: "connections, 4 subnets", scene: attackFrom(connections, 4, 1024).among(beside...)},
		{title: "streams, 64 subnets", scene: attackFrom(streams, 64, 64).among(near...)},
		{title: "connections, 64 subnets", scene: attackFrom(connections, 64, 64).among(near...)},
		{title: "streams, 64 IPv6 /56", scene: attackFrom(streams, 64, 64).at(attackersIn56)},
		{title: "streams through relays", scene: attackFrom(streams, 1, identitiesInAll).at(behindRelays)},
		{title: "no attack, 90 % wanted", scene: peace.among(shared...).wanting(0.9)},
		{title: "no attack, 70 % wanted", scene: peace.among(together).wanting(0.7)},
	}
}

// play plays every story on every variant, as many at a time as there are processors, and
// reports its progress.
func play(stories []*story, variants []variant, t times, seed uint64, progress io.Writer) error {
	var (
		work    = make(chan func() error)
		players sync.WaitGroup
		mu      sync.Mutex // guards the variables below
		done    int
		failed  error
	)
	all := len(stories) * len(variants)
	for range runtime.GOMAXPROCS(0) {
		players.Go(func() {
			for play := range work {
				err := play()
				mu.Lock()
				failed = cmp.Or(failed, err)
				done++
				fmt.Fprintf(progress, "\r%d of %d", done, all)
				mu.Unlock()
			}
		})
	}
	for _, s := range stories {
		s.outcomes = make([]outcome, len(variants))
		for i, v := range variants {
			work <- func() (err error) {
				s.outcomes[i], err = s.play(v, t, seed)
				return err
			}
		}
	}
	close(work)
	players.Wait()
	fmt.Fprintln(progress)
	return failed
}
