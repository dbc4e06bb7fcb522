package main

// What WithRoom does: attacks from more subnets than a limit has places, where nothing that only
// refuses can help, because the crowd was there first. A peer is served when it has its
// connection and its stream; lost are those of the served that the host let go before they went.

import (
	"fmt"
	"io"
	"time"
)

func roomStories() []*story {
	shared := []group{{"elsewhere", 0.8, anywhere}, {"a fifth, in one /24", 0.2, oneSubnet}}
	from := func(a *attack, n int) scene { return attackFrom(a, n, identitiesInAll/n) }
	var all []*story
	for _, a := range []*attack{streams, connections} {
		all = append(all,
			&story{title: a.title + ", 1024 subnets side by side", scene: from(a, 1024)},
			&story{title: a.title + ", 1024 subnets everywhere", scene: from(a, 1024).at(attackersEverywhere)},
			&story{title: a.title + ", 4096 subnets everywhere", scene: from(a, 4096).at(attackersEverywhere)})
	}
	often := from(connections, 4096).at(attackersEverywhere)
	often.tries = triesEvery / 4
	return append(all,
		&story{title: "the last, with four times as many tries", scene: often},
		&story{title: served.title + ", 1024 subnets everywhere", scene: from(served, 1024).at(attackersEverywhere)},
		&story{title: "connections, 1024 subnets side by side", scene: from(connections, 1024).among(shared...)},
		&story{title: "no attack, 90 % of the connections wanted", scene: peace.among(shared...).wanting(0.9)})
}

// shorter are the times of these scenes.
var shorter = times{before: 30 * time.Second, spread: 20 * time.Second, count: 30 * time.Second, after: 35 * time.Second}

// writeRoom writes what each group got.
func writeRoom(to io.Writer, stories []*story, variants []variant, seed uint64) error {
	fmt.Fprintf(to, "Seed %d. In percent: honest peers that were served at the first try → after at most %d more, and of these, those that were let go before they went.\n\n", seed, mostTries-1)
	rows := [][]string{{"attack", "honest peers"}}
	for _, v := range variants {
		rows[0] = append(rows[0], v.name)
	}
	for _, story := range stories {
		for i, g := range story.groups {
			row := []string{story.title, g.name}
			for _, o := range story.outcomes {
				f := o.fates[i]
				row = append(row, fmt.Sprintf("%v, lost %.0f", f.served, percent(f.lost, f.served.inTheEnd)))
			}
			rows = append(rows, row)
		}
	}
	return table(to, rows)
}
