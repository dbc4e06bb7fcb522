package main

// What WithRoom does: attacks from more subnets than a limit has places, where nothing that only
// refuses can help, because the crowd was there first. A peer is served when it has its
// connection and its stream; lost are those of the served that the host let go before they went.

import (
	"fmt"
	"io"
	"time"

	"github.com/multiformats/go-multiaddr"
)

func roomStories() []*story {
	shared := []group{{", elsewhere", 0.8, anywhere}, {", in one /24", 0.2, oneSubnet}}
	from := func(a *attack, n int, where string, place func(int, int) multiaddr.Multiaddr) *story {
		return &story{title: fmt.Sprintf("%s, %d %s", a.short, n, where), scene: attackFrom(a, n, identitiesInAll/n).at(place)}
	}
	return []*story{
		from(handshakes, 1024, "together", attackersIn24),
		from(handshakes, 4096, "spread", attackersEverywhere),
		from(streams, 1024, "together", attackersIn24),
		from(streams, 4096, "spread", attackersEverywhere),
		from(connections, 1024, "together", attackersIn24),
		from(connections, 1024, "spread", attackersEverywhere),
		from(connections, 4096, "spread", attackersEverywhere),
		from(served, 1024, "spread", attackersEverywhere),
		{title: "no attack", scene: peace.among(shared...).wanting(0.9)},
	}
}

// shorter are the times of these scenes.
var shorter = times{before: 20 * time.Second, spread: 10 * time.Second, count: 20 * time.Second, after: 32 * time.Second}

// writeRoom writes what each group got.
func writeRoom(to io.Writer, stories []*story, variants []variant, seed uint64) error {
	fmt.Fprintf(to, "Seed %d. In percent: honest peers that were served at the first try →\nafter at most %d more, and in brackets those of them that were let go before they\nwent.\n\n", seed, mostTries-1)
	rows := [][]string{{"attack, subnets"}}
	for _, v := range variants {
		rows[0] = append(rows[0], v.column())
	}
	for _, story := range stories {
		for i, g := range story.groups {
			row := []string{story.title}
			if len(story.groups) > 1 {
				row[0] += g.name
			}
			for _, o := range story.outcomes {
				f := o.fates[i]
				row = append(row, fmt.Sprintf("%v (%.0f)", f.served, percent(f.lost, f.served.inTheEnd)))
			}
			rows = append(rows, row)
		}
	}
	return table(to, rows)
}
