package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"
	"github.com/weir-p2p/rcmgr"
	"github.com/weir-p2p/rcmgr/internal/fakehost"
)

// short are the times of an attack of a quarter of a minute.
var short = times{before: 2 * time.Second, spread: 6 * time.Second, count: 8 * time.Second, after: time.Second}

// The indexes of this package's variants.
const (
	asItComes = 1 + iota
	fairTransient
	fairSystem
)

// played returns the outcome of a scene on each variant.
func played(t *testing.T, s scene) []outcome {
	t.Helper()
	const seed = 1
	t.Log("seed", seed)
	it := &story{scene: s}
	require.NoError(t, play([]*story{it}, variants, short, seed, io.Discard))
	return it.outcomes
}

func TestTheSameSeedGivesTheSameOutput(t *testing.T) {
	print := func(seed uint64) string {
		p := plan{
			sweeps:   []series{{title: "streams", attack: streams, stories: []*story{{scene: attackFrom(streams, 64, 64)}}}},
			specials: []*story{{title: "connections", scene: attackFrom(connections, 16, 256)}},
		}
		require.NoError(t, play(p.stories(), variants, short, seed, io.Discard))
		var out bytes.Buffer
		require.NoError(t, p.write(&out, variants, seed))
		require.NoError(t, draw(&out, p.sweeps, variants))
		for _, s := range p.stories() {
			fmt.Fprint(&out, s.outcomes)
		}
		return out.String()
	}
	require.Equal(t, print(1), print(1))
	require.NotEqual(t, print(1), print(2))
}

// Tables are read in terminals.
func TestTheTablesFit80Columns(t *testing.T) {
	full := outcome{held: 1}
	for range 2 {
		all := share{wanted: 1, atFirst: 1, inTheEnd: 1}
		full.fates = append(full.fates, fortune{conns: all, streams: all, served: all, lost: 1})
	}
	var out bytes.Buffer
	p, room := newPlan(), roomStories()
	for _, s := range p.stories() {
		s.outcomes = slices.Repeat([]outcome{full}, len(variants))
	}
	for _, s := range room {
		s.outcomes = slices.Repeat([]outcome{full}, len(roomVariants))
	}
	require.NoError(t, p.write(&out, variants, 1))
	require.NoError(t, writeRoom(&out, room, roomVariants, 1))
	for line := range strings.Lines(out.String()) {
		require.LessOrEqual(t, utf8.RuneCountInString(strings.TrimSuffix(line, "\n")), 80, line)
	}
}

func TestWithoutAnAttackEverybodyIsAdmittedAtTheFirstTry(t *testing.T) {
	for i, o := range played(t, peace) {
		served := o.all().served
		require.Greater(t, served.wanted, 100, variants[i].name)
		require.Equal(t, share{served.wanted, served.wanted, served.wanted}, served, variants[i].name)
		require.Zero(t, o.held)
	}
}

// These are all three attacks, by thousands of identities in few subnets. play itself
// checks that nothing is held at the end.
func TestFairShareAdmitsHonestPeersWhileFewSubnetsAttack(t *testing.T) {
	for _, a := range attacks {
		for _, subnets := range []int{1, 4} {
			t.Run(fmt.Sprintf("%s/%d", a.title, subnets), func(t *testing.T) {
				all := played(t, attackFrom(a, subnets, identitiesInAll/subnets))
				got := func(i int) float64 { return a.denied(all[i].all()).percentAtFirst() }
				helps := fairTransient
				if a == connections {
					helps = fairSystem
					require.Less(t, got(fairTransient), 50.0, "transient has no part in what the system holds")
				}
				require.Less(t, got(asItComes), 50.0)
				require.Greater(t, got(helps), 99.0)
				require.Greater(t, all[asItComes].held, 0.9)
				require.Less(t, all[helps].held, 0.9)
			})
		}
	}
}

func TestFairShareDoesNotHelpAgainstMoreNetworksThanTheLimitHasRoomFor(t *testing.T) {
	all := played(t, attackFrom(streams, 2*transientStreams, 1).at(attackersEverywhere))
	for _, i := range []int{asItComes, fairTransient, fairSystem} {
		require.Less(t, streamsOf(all[i].all()).percentAtFirst(), 5.0, variants[i].name)
	}
}

func TestFairShareHelpsAgainstAnyNumberOfSubnetsOfFewNetworks(t *testing.T) {
	all := played(t, attackFrom(streams, 2*transientStreams, 1))
	require.Less(t, streamsOf(all[asItComes].all()).percentAtFirst(), 5.0)
	require.Greater(t, streamsOf(all[fairTransient].all()).percentAtFirst(), 99.0)
}

func TestARefusedPeerTriesFourTimesMore(t *testing.T) {
	rm, err := newOurs()(nodeLimits(t), nil)
	require.NoError(t, err)
	defer rm.Close()
	closed := &refuser{ResourceManager: rm}
	var c clock
	fates := make([]fortune, 1)
	newVisit(&c, &fakehost.Host{RM: closed}, 1, 0, peace.groups, fates).begin()
	c.run()
	require.Equal(t, mostTries, closed.asked)
	require.Equal(t, fortune{conns: share{wanted: 1}, served: share{wanted: 1}}, fates[0])
	require.Greater(t, c.now, 7*time.Second, "it waits longer each time")
}

func nodeLimits(t *testing.T) rcmgr.ConcreteLimitConfig {
	l, err := limits()
	require.NoError(t, err)
	return l
}

// refuser refuses all connections.
type refuser struct {
	network.ResourceManager
	asked int
}

func (r *refuser) OpenConnection(network.Direction, bool, multiaddr.Multiaddr) (network.ConnManagementScope, error) {
	r.asked++
	return nil, errors.New("no")
}

func TestScopesThatAreLeftOpenAreFound(t *testing.T) {
	for _, v := range variants {
		rm, err := v.make(nodeLimits(t), new(clock))
		require.NoError(t, err)
		defer rm.Close()
		require.NoError(t, empty(rm))
		conn, err := rm.OpenConnection(network.DirInbound, true, attackersIn24(0, 0))
		require.NoError(t, err)
		require.Error(t, empty(rm), v.name)
		conn.Done()
		require.NoError(t, empty(rm))
	}
}

func TestEventsHappenInTheOrderOfTheirTimesAndThenOfTheirRequests(t *testing.T) {
	var c clock
	var order, want []string
	note := func(s string) { order = append(order, fmt.Sprint(s, " at ", int(c.now))) }
	c.after(2, func() { note("last") })
	for i := range 9 {
		c.after(1, func() { note(fmt.Sprint(i)) })
		want = append(want, fmt.Sprint(i, " at 1"))
	}
	c.after(1, func() { c.after(0, func() { note("at once") }) })
	c.run()
	require.Equal(t, append(want, "at once at 1", "last at 2"), order)
}

func TestThePlotIsXMLWithAPanelForEachAttackAndALineForEachManager(t *testing.T) {
	p := newPlan()
	for _, s := range p.stories() {
		s.outcomes = make([]outcome, len(variants))
	}
	var svg bytes.Buffer
	require.NoError(t, draw(&svg, p.sweeps[:len(attacks)], variants))
	d := xml.NewDecoder(&svg)
	curves := 0
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		if e, ok := token.(xml.StartElement); ok && e.Name.Local == "polyline" {
			curves++
		}
	}
	require.Equal(t, len(attacks)*len(variants), curves)
}

func TestWrongCommandLinesAreErrors(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"1"}, `unexpected argument "1": expected nothing but flags`},
		{[]string{"-seed", "-1"}, `invalid value "-1" for flag -seed: expected a number from 0 to `},
		{[]string{"-seed", "NaN"}, `invalid value "NaN" for flag -seed: expected a number from 0 to `},
		{[]string{"-svg", ""}, `invalid value "" for flag -svg: expected the name of a file`},
		{[]string{"-svg", dir}, fmt.Sprintf("invalid value %q for flag -svg: expected a file that can be written: ", dir)},
	} {
		_, err := settingsFrom(c.args)
		require.ErrorContains(t, err, c.want, "%q", c.args)
	}
	file := filepath.Join(dir, "plot.svg")
	s, err := settingsFrom([]string{"-seed", "2", "-svg", file})
	require.NoError(t, err)
	require.Equal(t, settings{seed: 2, svg: file, show: "shares"}, s)
}
