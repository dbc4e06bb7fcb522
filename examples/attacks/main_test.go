package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"
	"github.com/weir-p2p/rcmgr"
)

// A victim is a process of this program, and so of the test binary in tests.
func TestMain(m *testing.M) {
	if os.Getenv(victimEnv) != "" {
		main()
		os.Exit(0) // a victim must not run the tests, which start victims
	}
	quiet()
	os.Exit(m.Run())
}

// shortly is how long an attack of a test lasts.
const shortly = time.Second / 2

// onAllShortly runs an attack on all managers for a short time.
func onAllShortly(t *testing.T, a *attack) (onUpstream, ours, optioned, roomToo outcome) {
	t.Helper()
	return onAllFor(t, a, shortly)
}

// onAllFor runs an attack on all managers. None may hold anything in the end.
func onAllFor(t *testing.T, a *attack, duration time.Duration) (onUpstream, ours, optioned, roomToo outcome) {
	t.Helper()
	if testing.Short() {
		t.Skip("attacks real hosts for some seconds")
	}
	if err := checkLoopback(); err != nil {
		t.Skip(err)
	}
	s := settings{which: a.name, duration: duration, attackers: fewestAttackers, memory: leastMemory}
	var progress, table bytes.Buffer
	r, err := a.onAll(t.Context(), s, &progress)
	require.NoError(t, err, progress.String())
	require.Contains(t, progress.String(), "guests served ")
	r.print(&table)
	t.Log(table.String())
	for _, o := range r.Outcomes {
		require.Empty(t, o.Victim.Left, "on %s", o.Manager)
		require.Positive(t, o.Victim.Memory.HeapMost)
	}
	require.Len(t, r.Outcomes, 4)
	return r.Outcomes[0], r.Outcomes[1], r.Outcomes[withOption], r.Outcomes[withRoom]
}

func TestNewcomersAreServedByFairShare(t *testing.T) {
	onUpstream, ours, fair, _ := onAllShortly(t, &fairShare)
	for _, o := range []outcome{onUpstream, ours} {
		require.Positive(t, o.Victim.Guests[0], "newcomers are refused on %s", o.Manager)
		require.Less(t, o.Guests[0].rate(), fair.Guests[0].rate(), o.Manager)
	}
	require.Zero(t, fair.Victim.Guests[0], "there is room for newcomers")
	require.True(t, fair.Victim.refused("inbound stream, fair-share"), "%v", fair.Victim.Crowd)
	require.True(t, fair.Victim.refused("inbound connection, fair-share"), "%v", fair.Victim.Crowd)
}

func TestMemoryStaysWithinItsLimitUnderPressureAndFriendsAreServed(t *testing.T) {
	onUpstream, ours, pressed, roomy := onAllShortly(t, &memoryPressure)
	// A busy machine may not have collected the garbage by then that shows what room was made.
	for longer := 4 * shortly; roomy.Guests[strangers].rate() == 0 && longer <= 16*shortly; longer *= 4 {
		onUpstream, ours, pressed, roomy = onAllFor(t, &memoryPressure, longer)
	}
	for _, o := range []outcome{onUpstream, ours} {
		require.Greater(t, o.Victim.Memory.HeapMost, int64(128<<20), "all is kept on %s", o.Manager)
		require.Empty(t, o.Victim.Crowd)
		require.Greater(t, o.Victim.Memory.HeapMost, pressed.Victim.Memory.HeapMost, o.Manager)
	}
	require.True(t, pressed.Victim.refused("process, inbound stream, memory-pressure"), "%v", pressed.Victim.Crowd)
	require.Positive(t, pressed.Victim.Guests[strangers])
	for _, spared := range []int{allowlistedFriend, earlyGuest} {
		require.Zero(t, pressed.Victim.Guests[spared])
		require.Positive(t, pressed.Guests[spared].rate(), pressed.Guests[spared].Last)
	}
	require.Less(t, pressed.Guests[strangers].rate(), pressed.Guests[allowlistedFriend].rate())
	require.Less(t, pressed.Guests[strangers].rate(), roomy.Guests[strangers].rate())
	require.Less(t, roomy.Victim.Memory.HeapMost, ours.Victim.Memory.HeapMost)
}

func TestValuedPeersGetInWhereThereIsTrimming(t *testing.T) {
	onUpstream, ours, trimming, roomy := onAllShortly(t, &trim)
	for _, o := range []outcome{onUpstream, ours} {
		require.True(t, o.Victim.refused("system, connection"))
		require.Positive(t, o.Victim.Guests[comingGuests], o.Manager)
		require.Less(t, o.Guests[comingGuests].rate(), trimming.Guests[comingGuests].rate(), o.Manager)
		require.Less(t, o.Guests[comingGuests].rate(), roomy.Guests[comingGuests].rate(), o.Manager)
	}
}

func TestOnePeersStreamsAreHeldToItsRateAndItsFriendLosesNothing(t *testing.T) {
	onUpstream, ours, rated, roomy := onAllShortly(t, &rate)
	for _, o := range []outcome{onUpstream, ours} {
		require.Empty(t, o.Victim.Crowd, "no limit is met on %s", o.Manager)
		require.Equal(t, o.Victim.Streams.Tried, o.Victim.Streams.Admitted, o.Manager)
	}
	for _, o := range []outcome{rated, roomy} {
		c := o.Victim.Streams
		require.LessOrEqual(t, c.Over, 0, "more than burst + rate × t, on %s", o.Manager)
		require.GreaterOrEqual(t, c.Admitted, streamBurst, o.Manager)
		require.Greater(t, c.Tried, c.Admitted, o.Manager)
		require.True(t, o.Victim.refused("peer, inbound stream, rate"), "%v", o.Victim.Crowd)
		require.Len(t, o.Victim.Crowd, 1, o.Manager)
		require.Empty(t, o.Victim.Guests, "what the friend is refused on %s", o.Manager)
		require.Positive(t, o.Guests[0].rate(), o.Guests[0].Last)
	}
}

func TestStreamsOverTheRateAreCountedOverTheWorstTime(t *testing.T) {
	var c streamCounts
	start := time.Now()
	at := func(d time.Duration, admitted bool) { c.add(start.Add(d), start.Add(d), admitted) }
	for range streamBurst {
		at(time.Second, true)
	}
	at(time.Second, false)
	require.Zero(t, c.Over)
	for range streamRate {
		at(2*time.Second, true)
	}
	require.Zero(t, c.Over)
	at(2*time.Second, true)
	require.Equal(t, 1, c.Over)
	at(20*time.Second, true)
	for range streamBurst + 2 {
		at(20*time.Second, true)
	}
	require.Equal(t, 3, c.Over, "the burst at 20 seconds alone")
	require.Equal(t, 2*streamBurst+streamRate+5, c.Tried)
	require.Equal(t, c.Tried-1, c.Admitted)
	require.Equal(t, 19*time.Second, c.Took)
}

// Both managers describe refusals in the same way. Guests are told from the crowd by
// their addresses, and as peers from then on.
func TestRefusalsAreCountedByWhatRefusesAndWhom(t *testing.T) {
	guest, err := newFriend()
	require.NoError(t, err)
	stranger, err := newFriend()
	require.NoError(t, err)
	p := plan{limits: rcmgr.PartialLimitConfig{
		System:      rcmgr.ResourceLimits{ConnsInbound: 2},
		PeerDefault: rcmgr.ResourceLimits{StreamsInbound: rcmgr.BlockAllLimit, StreamsOutbound: rcmgr.BlockAllLimit, ConnsInbound: 1},
	}}
	for i := range 2 {
		m, err := columns[i].make(p)
		require.NoError(t, err)
		defer m.Close()
		o := newObserver(m)
		require.Equal(t, m, o.Unwrap())
		open := func(from net.IP, is friend) error {
			c, err := o.OpenConnection(network.DirInbound, false, multiaddr.StringCast(fmt.Sprintf("/ip4/%v/tcp/1", from)))
			if err == nil {
				err = c.SetPeer(is.id)
			}
			return err
		}
		stream := func(of friend, dir network.Direction) {
			if s, err := o.OpenStream(of.id, dir); err == nil {
				s.Done()
			}
		}
		require.NoError(t, open(guestIP(3, 0), guest))
		stream(guest, network.DirInbound)
		require.Error(t, open(guestIP(3, 1), guest), "one connection of a peer")
		require.Error(t, open(guestIP(4, 0), guest), "the system is full")
		require.Error(t, open(crowdIP(0), stranger))
		stream(stranger, network.DirInbound)
		stream(stranger, network.DirOutbound)
		crowd, guests := o.refused()
		require.Equal(t, map[string]int{"system, inbound connection": 1, "peer, inbound stream": 1}, crowd, columns[i].name)
		require.Equal(t, map[int]int{3: 2, 4: 1}, guests, columns[i].name)

		left, err := held(m)
		require.NoError(t, err)
		require.NotEmpty(t, left)
		require.Equal(t, 2, o.closeForgotten())
		left, err = held(m)
		require.NoError(t, err)
		require.Empty(t, left)
	}
}

func TestARefusalWithoutAScopeIsReportedAsAGates(t *testing.T) {
	require.Equal(t, "a gate", why(errors.New("rate limit exceeded")))
	f, err := newFriend()
	require.NoError(t, err)
	m, err := rcmgr.New(nil, rcmgr.WithMemoryPressure(rcmgr.MemoryPressureConfig{Limit: 100, InUse: func() int64 { return 100 }}))
	require.NoError(t, err)
	defer m.Close()
	_, err = m.OpenStream(f.id, network.DirInbound)
	require.Equal(t, "process, inbound stream, memory-pressure", why(err))
}

func TestEverySimulatedPeerHasItsOwnAddress(t *testing.T) {
	seen := map[string]bool{homeIP().String(): true}
	networks := map[string]int{}
	use := func(ip net.IP, group int) {
		require.False(t, seen[ip.String()], "%v", ip)
		seen[ip.String()] = true
		require.Equal(t, group, groupAt(ip), "%v", ip)
		networks[ip.Mask(net.CIDRMask(24, 32)).String()]++
	}
	for n := range mostAttackers {
		use(crowdIP(n), -1)
	}
	require.Len(t, networks, crowdNetworks)
	for group := range 3 {
		for n := range 250 {
			use(guestIP(group, n), group)
		}
	}
	require.Len(t, networks, crowdNetworks+3*250)
	for n := range 250 * 249 {
		require.Equal(t, 1, groupAt(guestIP(1, n)))
	}
}

func TestTheReportLeavesOutEmptyTables(t *testing.T) {
	one := outcome{Manager: "one", Guests: []namedTally{{Name: "guests"}, {Name: "nobody"}}, Victim: report{Memory: memory{HeapMost: 3 << 20, ProcessMost: 4 << 20, Looks: 8}}}
	for i := range 100 {
		one.Guests[0].Took = append(one.Guests[0].Took, time.Duration(100-i)*time.Millisecond)
	}
	other := one
	other.Manager, other.Guests = "ours, WithIt", []namedTally{{Name: "guests", tally: tally{Failed: 2}}, {Name: "nobody"}}
	other.Victim.Guests, other.Victim.Crowd = map[int]int{0: 2}, map[string]int{"system, stream": 7}
	other.Victim.Memory.Over, other.Victim.Left = 4, []string{"system"}
	var out bytes.Buffer
	(&result{Attack: "this", About: "that", Option: "WithIt", Outcomes: []outcome{one, other}}).print(&out)
	require.Equal(t, `
this: that.
The option is WithIt, room is WithRoom.

| guests       | served       | median  | 95 %    | refused |
|---           |---           |---      |---      |---      |
| one          | 100 % of 100 | 50.0 ms | 95.0 ms | –       |
| ours, option | 0 % of 2     | –       | –       | 2       |

| crowd refused by | one | option |
|---               |---  |---     |
| system, stream   | –   | 7      |

| victim       | heap  | process | above | forgotten | left |
|---           |---    |---      |---    |---        |---   |
| one          | 3 MiB | 4 MiB   | –     | –         | –    |
| ours, option | 3 MiB | 4 MiB   | 50 %  | –         | 1    |

Heap and process are the most memory that was in use; above is the time above
what the victim may use; forgotten are connections that the host did not close;
left are the scopes that hold anything when all have gone.
`, out.String())
}

// Tables are read in terminals.
func TestTheTablesFit80Columns(t *testing.T) {
	for _, a := range attacks {
		var all []outcome
		for i := range columns {
			o := outcome{Manager: a.column(i), Victim: report{
				Guests: map[int]int{}, Memory: memory{HeapMost: 999 << 20, ProcessMost: 999 << 20, Over: 8, Looks: 8}, Forgotten: 99,
				Crowd: map[string]int{"process, inbound stream, memory-pressure": 9999, "transient, inbound connection, fair-share": 9999},
				Own:   tally{Took: slices.Repeat([]time.Duration{99 * time.Millisecond}, 9999)},
			}}
			for g, name := range a.groups {
				o.Guests = append(o.Guests, namedTally{Name: name, tally: o.Victim.Own})
				o.Victim.Guests[g] = 9999
			}
			all = append(all, o)
		}
		var out bytes.Buffer
		(&result{Attack: a.name, About: a.about, Option: a.option, Outcomes: all}).print(&out)
		for line := range strings.Lines(out.String()) {
			if strings.HasPrefix(line, "|") {
				require.LessOrEqual(t, utf8.RuneCountInString(strings.TrimSuffix(line, "\n")), 80, line)
			}
		}
	}
}

func TestWrongCommandLinesAreErrors(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "no", "results.json")
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"trim"}, `unexpected argument "trim": expected nothing but flags`},
		{[]string{"-attack", "flood"}, `invalid value "flood" for flag -attack: expected all, fairshare, memory, trim or rate`},
		{[]string{"-duration", "0"}, `invalid value "0" for flag -duration: expected a duration of more than 0, `},
		{[]string{"-attackers", "19"}, `invalid value "19" for flag -attackers: expected a number from 20 to 750`},
		{[]string{"-attackers", "751"}, `invalid value "751" for flag -attackers: expected a number from 20 to 750`},
		{[]string{"-memory", "63"}, `invalid value "63" for flag -memory: expected a number from 64 to 1048576`},
		{[]string{"-memory", "9000000000000"}, `invalid value "9000000000000" for flag -memory: expected a number from 64 to 1048576`},
		{[]string{"-memory", "256", "-attack", "trim"}, `invalid value "256" for flag -memory: expected with -attack memory or all, not trim`},
		{[]string{"-json", missing}, fmt.Sprintf("invalid value %q for flag -json: expected a file that can be written: ", missing)},
	} {
		_, err := settingsFrom(c.args)
		require.ErrorContains(t, err, c.want, "%q", c.args)
	}
	s, err := settingsFrom([]string{"-attack", "memory", "-memory", "64", "-json", filepath.Join(t.TempDir(), "results.json")})
	require.NoError(t, err)
	require.Equal(t, []*attack{&memoryPressure}, s.chosen())
	require.Equal(t, 64, s.memory)
}

// A victim that cannot start reports why, and so does the process that asks it.
func TestAnAttackedProcessThatExitsIsAnError(t *testing.T) {
	f, err := newFriend()
	require.NoError(t, err)
	v, err := startVictim(order{Attack: "none", Asks: peer.AddrInfo{ID: f.id}})
	require.NoError(t, err)
	_, err = v.ask(howIsIt)
	require.EqualError(t, err, "the victim does not answer: exit status 1\nattacks: victim: no such attack: \"none\"\n")
	require.EqualError(t, beVictim(strings.NewReader("{"), nil), "an order: unexpected EOF")
}

func TestAnInterruptEndsAnAttack(t *testing.T) {
	if err := checkLoopback(); testing.Short() || err != nil {
		t.Skip("starts a real host", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := play(ctx, settings{duration: time.Hour, attackers: fewestAttackers}, &fairShare, 1, &bytes.Buffer{})
	require.ErrorIs(t, err, context.Canceled)
}
