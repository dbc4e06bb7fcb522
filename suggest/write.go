package suggest

// A proposal as text: the file, the comment beside it, and the table.

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/weir-p2p/rcmgr/internal/text"
)

// WriteLimits writes the limits as JSON that rcmgr.ReadLimits reads. It returns the error of
// w, if any.
func (p *Proposal) WriteLimits(w io.Writer) error {
	text, err := json.MarshalIndent(p.Limits, "", "  ")
	if err != nil {
		return fmt.Errorf("suggest: %w", err)
	}
	_, err = w.Write(append(text, '\n'))
	return err
}

// WriteComment writes the text that belongs beside the file of limits, because JSON has no
// comments: a line for each limit with its reason, and the notes. It returns the error of w, if
// any.
func (p *Proposal) WriteComment(w io.Writer) error {
	var b strings.Builder
	for i := range p.Reasons {
		r := &p.Reasons[i]
		fmt.Fprintf(&b, "%s = %s\n    %s\n", printable(r.Place), r.valueText(), r.Why)
	}
	p.writeNotes(&b)
	_, err := io.WriteString(w, b.String())
	return err
}

// WriteTable writes the limits as a table, then what WriteNotes writes. It returns the error of w,
// if any.
func (p *Proposal) WriteTable(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, strings.Join(Columns, "\t"))
	for i := range p.Reasons {
		fmt.Fprintln(t, strings.Join(p.Reasons[i].Cells(), "\t"))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	return p.WriteNotes(w)
}

// Columns are the headings of the table that WriteTable writes.
var Columns = []string{"Limit", "Proposed", "Seen", "Usual", "Was", "Refused", "Holders", "By", "Sure"}

// Cells returns the row of the reason in the table that WriteTable writes, a cell for each of
// Columns. Amounts have units, and names are printable.
func (r *Reason) Cells() []string {
	was, holders := "-", "-"
	if r.Was > 0 {
		was = amountText(r.isMemory(), r.Was)
	}
	if r.Holders > 0 {
		holders = strconv.Itoa(r.Holders)
	}
	return []string{printable(r.Place), r.valueText(), amountText(r.isMemory(), r.Seen), amountText(r.isMemory(), r.Usual), was,
		strconv.FormatUint(r.Refused+r.WouldRefuse, 10), holders, string(r.Rule), string(r.Sure)}
}

// WriteNotes writes the notes, and what the limits would have refused of what was seen. It returns
// the error of w, if any.
func (p *Proposal) WriteNotes(w io.Writer) error {
	var b strings.Builder
	p.writeNotes(&b)
	_, err := io.WriteString(w, b.String())
	return err
}

func (p *Proposal) writeNotes(b *strings.Builder) {
	if len(p.Notes) > 0 {
		b.WriteString("\n")
	}
	for _, n := range p.Notes {
		b.WriteString(printable(n) + "\n")
	}
	if len(p.Refused) == 0 {
		b.WriteString("\nThese limits would have refused nothing of what was seen.\n")
		return
	}
	b.WriteString("\nThese limits would have refused, of what was seen:\n")
	for i := range p.Refused {
		r := &p.Refused[i]
		what := fmt.Sprintf("%s, %s", text.Plural(r.Times, "time"), r.What)
		if r.Times == 0 {
			memory := strings.HasSuffix(r.Place, ".Memory")
			what = fmt.Sprintf("%s: %s were held, the limit is %s", r.What, amountText(memory, r.Held), amountText(memory, r.Limit))
		}
		fmt.Fprintf(b, "  %s: %s (%s, in %s)\n", printable(r.Scope), what, printable(r.Place), printable(r.In))
	}
}

func (r *Reason) isMemory() bool { return strings.HasSuffix(r.Place, ".Memory") }

func (r *Reason) valueText() string {
	if r.gate {
		return r.text()
	}
	return amountText(r.isMemory(), r.Value)
}

// amountText returns a count, or a number of bytes with a unit.
func amountText(bytes bool, n int64) string {
	switch {
	case bytes:
		return text.Bytes(n)
	case n == math.MaxInt64:
		return "unlimited"
	}
	return strconv.FormatInt(n, 10)
}

// sentence says why a limit is what it is.
func (r *Reason) sentence(margin float64, d dim) string {
	memory := d == dimMemory
	amount := func(n int64) string { return amountText(memory, n) }
	var b strings.Builder
	switch {
	case r.Seen == 0:
		b.WriteString("None was seen")
	default:
		fmt.Fprintf(&b, "At most %s seen", amount(r.Seen))
		if !r.At.IsZero() {
			fmt.Fprintf(&b, " at %s", r.At.UTC().Format(time.RFC3339))
		}
		switch {
		case r.Holders > 1 && r.TopHeld > 0 && r.TopHeld < r.Seen:
			fmt.Fprintf(&b, ", held by %d peers, %s of it by %s", r.Holders, amount(r.TopHeld), printable(r.Top))
		case r.Holders > 1:
			fmt.Fprintf(&b, ", where %d peers have held half of it or more", r.Holders)
		case r.Top != "":
			fmt.Fprintf(&b, ", by %s", printable(r.Top))
		}
		if r.Usual > 0 && r.Usual != r.Seen {
			fmt.Fprintf(&b, "; usually at most %s", amount(r.Usual))
		}
	}
	fmt.Fprintf(&b, ". %s", r.ruleText(margin))
	if r.Refused > 0 {
		fmt.Fprintf(&b, " The limit of that time%s refused %s, so the need may be higher.", r.wasText(), text.Plural(r.Refused, "request"))
	}
	if r.WouldRefuse > 0 {
		fmt.Fprintf(&b, " The limit of that time%s was only observed; it would have refused %s, which %s part of what was seen.", r.wasText(),
			text.Plural(r.WouldRefuse, "request"), text.Noun(r.WouldRefuse, "is", "are"))
	}
	fmt.Fprintf(&b, " Sureness is %s: %s in %s.", r.Sure, text.Plural(r.Looks, "look"), spanText(r.Span))
	return b.String()
}

func (r *Reason) wasText() string {
	if r.Was <= 0 {
		return ""
	}
	return ", " + amountText(r.isMemory(), r.Was) + ","
}

func (r *Reason) ruleText(margin float64) string {
	switch r.Rule {
	case RuleFloor:
		if r.unseen {
			return "It is for those that no peer has used: the limit is a stream of each of four peers, and the memory for these."
		}
		return "The limit is the least that is proposed, which libp2p's own protocols need on any node."
	case RuleHighWater:
		return "The limit is what the connection manager's high water mark needs."
	case RuleSum:
		if r.Value == math.MaxInt64 {
			return "The limits of each direction are enough."
		}
		return "The limit is the sum of both directions, so that neither takes the other's room."
	case RuleReplay:
		return "The limit was raised until a replay of the trace refused nothing."
	case RuleMachine:
		return "The limit is what the machine has."
	case RuleBurst:
		return "The network may come back with all of its connections at once, before the old ones are missed."
	case RuleOuter:
		return "The limit is that of a scope in which all of it counts, too."
	}
	return fmt.Sprintf("The limit is %g times the usual or %g times the highest value, rounded up to two digits.", margin, (1+margin)/2)
}

func spanText(d time.Duration) string {
	if d >= time.Hour {
		return d.Round(time.Minute).String()
	}
	return d.Round(time.Second).String()
}

// printable returns text in which remote peers cannot hide anything: names of protocols are
// theirs.
func printable(s string) string {
	quoted := strconv.Quote(s)
	inner := quoted[1 : len(quoted)-1]
	if strings.ReplaceAll(inner, `\"`, `"`) == s {
		return s
	}
	return inner
}
