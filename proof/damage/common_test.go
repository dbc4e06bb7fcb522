package main

import (
	"go/parser"
	"go/token"
	"slices"
	"strings"
	"testing"
)

const testSource = `package p

const most = 64

func (s *scope) open(n int) bool {
	if n > most {
		return false
	}
	s.n++
	return true
}

func (s *scope) close() { s.n-- }

func labeled() {
again:
	for {
		continue again
	}
}
`

func TestAFunctionThatIsDamagedTwiceHasTwoCopiesOfItsBody(t *testing.T) {
	all := map[int]damage{
		1: {"p.go", "n > most", "n >= most"},
		2: {"p.go", "\ts.n++\n", ""},
		3: {"p.go", "{ s.n-- }", "{}"}, // the braces are not in the body
		4: {"p.go", "s.n--", "s.n -= 2"},
		5: {"p.go", "const most = 64", "const most = 63"},
		6: {"p.go", "continue again", "break again"},
		7: {"p.go", "\treturn true\n", "\treturn (true\n"},
	}
	damaged, places := damageAll(testSource, all)
	if _, err := parser.ParseFile(token.NewFileSet(), "p.go", damaged, 0); err != nil {
		t.Fatalf("%v in\n%s", err, damaged)
	}
	lines := strings.Split(damaged, "\n")
	var numbers []int
	for _, p := range places {
		numbers = append(numbers, p.number)
		copied := strings.Join(lines[p.from-1:p.to], "\n")
		if d := all[p.number]; !strings.Contains(copied, "damageNumber == ") || !strings.Contains(copied, strings.TrimSpace(d.now)) {
			t.Errorf("number %d is not in lines %d to %d:\n%s", p.number, p.from, p.to, copied)
		}
	}
	if want := []int{1, 2, 4}; !slices.Equal(numbers, want) {
		t.Errorf("damaged by %v, want %v", numbers, want)
	}
	if !strings.Contains(damaged, "s.n -= 2") || strings.Count(damaged, "if n > most") != 2 || strings.Count(damaged, "if n >= most") != 1 {
		t.Errorf("not as expected:\n%s", damaged)
	}
}

func TestWhatNoticedADamageIsWrittenAndReadBack(t *testing.T) {
	c := caught{damages[0].key(): "TestOne", damages[1].key(): "TestTwo/part", damages[2].key(): "test timed out"}
	read := readCaught(c.text(damages))
	if len(read) != 2 || read[damages[0].key()] != "TestOne" || read[damages[1].key()] != "TestTwo/part" {
		t.Errorf("%v", read)
	}
	keys := map[string]string{}
	for _, d := range damages {
		if other, ok := keys[d.key()]; ok {
			t.Errorf("it is there twice, or has the key of another: %s: %s and %s", d.key(), other, d.was)
		}
		keys[d.key()] = d.was
	}
}
