package rcmgr

// What was let go to make room, as tables.

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/weir-p2p/rcmgr/internal/text"
)

// writeSection writes a heading and what writeRoom writes, or nothing without any.
func (s *RoomState) writeSection(w io.Writer) error {
	if !s.on() {
		return nil
	}
	fmt.Fprintf(w, "\nLet go to make room, on %s\n\n", text.Plural(s.Hosts, "host"))
	return s.writeRoom(w)
}

// writeRoom writes what was let go to make room, and what is kept.
func (s *RoomState) writeRoom(w io.Writer) error {
	t := newTable(w, "Scope", "Let Go", "Because Of", "Times", "Would Be")
	for _, c := range s.rows() {
		t.row(c.Scope.String(), c.What.String(), c.Reason, strconv.FormatUint(c.Count, 10), strconv.FormatUint(c.Would, 10))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if kept := s.keptText(); kept != "" {
		fmt.Fprintf(w, "Kept: %s\n", kept)
	}
	for _, k := range slices.Sorted(maps.Keys(s.OnlyKept)) {
		fmt.Fprintf(w, "%s, all that was left of %v was kept\n", text.Plural(s.OnlyKept[k], "time"), k)
	}
	for _, f := range slices.Sorted(maps.Keys(s.Faults)) {
		fmt.Fprintf(w, "Faults of hosts, %s: %d\n", f, s.Faults[f])
	}
	if len(s.Last) == 0 {
		return nil
	}
	fmt.Fprintln(w)
	return writeVictims(w, s.Last)
}

// text returns what writeRoom writes, or nothing without any.
func (s *RoomState) text() string {
	if !s.on() {
		return ""
	}
	var b strings.Builder
	_ = s.writeRoom(&b) // a strings.Builder returns no error
	return b.String()
}

// roomRow is what was let go and what would have been, for the same reason.
type roomRow struct {
	RoomCount
	Would uint64
}

// rows returns both counts by scope, kind and reason.
func (s *RoomState) rows() (rows []roomRow) {
	key := func(c RoomCount) RoomCount { c.Count = 0; return c }
	would := make(map[RoomCount]uint64)
	for _, c := range s.WouldLetGo {
		would[key(c)] = c.Count
	}
	for _, c := range s.LetGo {
		rows = append(rows, roomRow{c, would[key(c)]})
		delete(would, key(c))
	}
	for _, c := range s.WouldLetGo {
		if n, left := would[key(c)]; left {
			rows = append(rows, roomRow{key(c), n})
		}
	}
	return rows
}

// keptText returns how many are kept, by class.
func (s *RoomState) keptText() string {
	var parts []string
	for _, class := range slices.Sorted(maps.Keys(s.Kept)) {
		parts = append(parts, fmt.Sprint(class, " ", s.Kept[class]))
	}
	return strings.Join(parts, ", ")
}

func writeVictims(w io.Writer, list []RoomVictim) error {
	t := newTable(w, "Scope", "Peer", "Short Of", "Because Of", "Group")
	for _, v := range list {
		t.row(v.Name, v.Peer, printable(v.Scope)+" "+v.Limit, v.Reason, printable(v.Group))
	}
	return t.Flush()
}
