package rcmgr

// The strict reader of limit files. encoding/json passes over what it does not
// know, which in a limit file means that a limit is not in force and nobody
// hears of it. So the text is first walked token by token beside the Go type
// that it is to fill, and everything that does not belong there is an error
// that tells where it stands.

import (
	"bytes"
	"cmp"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/libp2p/go-libp2p/core/peer"
)

// limitFile is a text and how far it has been read.
type limitFile struct {
	text []byte
	dec  *json.Decoder
	// values has the offset of each value that has been walked over, by path.
	values map[string]int
}

func readLimitsJSON(in io.Reader) (PartialLimitConfig, error) {
	text, err := io.ReadAll(in)
	if err != nil {
		return PartialLimitConfig{}, fmt.Errorf("limits: %w", err)
	}
	f := limitFile{text, json.NewDecoder(bytes.NewReader(text)), make(map[string]int)}

	var cfg PartialLimitConfig
	err = json.Unmarshal(text, &cfg)
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		return PartialLimitConfig{}, f.errorAt(int(syntax.Offset)-1, "", err)
	}
	// The text is one JSON value. What else Unmarshal has to say about it, the
	// walk says better.
	if misfit := f.check(reflect.TypeFor[PartialLimitConfig](), ""); misfit != nil {
		err = misfit
	}
	if err == nil {
		err = f.checkGates(cfg.Gates)
	}
	if err != nil {
		return PartialLimitConfig{}, err
	}
	return cfg, nil
}

// checkGates tells what single values of the gates cannot show.
func (f *limitFile) checkGates(g *GateLimits) error {
	_, err := g.config()
	var bad *misplaced
	if !errors.As(err, &bad) {
		return err
	}
	at, ok := f.values[bad.path]
	for path := bad.path; !ok; at, ok = f.values[path] {
		path = path[:strings.LastIndexAny(path, ".[")] // what is missing is not there to point at
	}
	return f.errorAt(at, bad.path, bad.err)
}

// check walks over the next value, which is to fill a t at this path. The
// text being valid JSON, the decoder has no errors of its own to tell.
func (f *limitFile) check(t reflect.Type, path string) error {
	start := f.next()
	f.values[path] = start
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	val, isVal := reflect.New(t).Interface().(json.Unmarshaler)
	plain, isPlain := plainValues[t.Kind()]
	isPlain = isPlain && !isVal
	if isVal || isPlain || f.text[start] != '{' {
		var raw json.RawMessage
		_ = f.dec.Decode(&raw)
		switch {
		case isVal:
			return f.errorAt(start, path, checkVal(val, raw))
		case !isPlain:
			plain = "an object in braces"
		case string(raw) != "null" && json.Unmarshal(raw, reflect.New(t).Interface()) == nil:
			return nil
		}
		return f.errorAt(start, path, fmt.Errorf("expected %s, found %s", plain, describe(raw)))
	}

	_, _ = f.dec.Token() // the opening brace
	seen := make(map[string]bool)
	for f.dec.More() {
		start := f.next()
		token, _ := f.dec.Token()
		name := token.(string)
		m, err := memberOf(t, path, name)
		if err == nil && seen[m.key] {
			err = errors.New("is given twice")
		}
		if err != nil {
			return f.errorAt(start, m.path, err)
		}
		seen[m.key] = true
		if err := f.check(m.elem, m.path); err != nil {
			return err
		}
	}
	_, _ = f.dec.Token() // the closing brace
	return nil
}

// plainValues are the values that encoding/json reads by itself.
var plainValues = map[reflect.Kind]string{
	reflect.Bool:    "true or false",
	reflect.Float64: "a number",
}

// member is what a name in an object stands for.
type member struct {
	key  string // one for all spellings of the name
	path string
	elem reflect.Type
}

// memberOf looks up a name among the fields of a struct, or takes it as a key
// of a map. The path is there on an error, too.
func memberOf(t reflect.Type, path, name string) (member, error) {
	if t.Kind() == reflect.Map {
		m := member{key: name, path: fmt.Sprintf("%s[%q]", path, name), elem: t.Elem()}
		key := reflect.New(t.Key()).Interface()
		var err error
		switch key := key.(type) {
		case *int:
			*key, err = strconv.Atoi(name)
		case encoding.TextUnmarshaler:
			err = key.UnmarshalText([]byte(name))
		default:
			return m, nil
		}
		if err != nil {
			return m, fmt.Errorf("expected %s: %w", keyNouns[t.Key()], err)
		}
		m.key = fmt.Sprint(reflect.ValueOf(key).Elem())
		return m, nil
	}

	var known []string
	for field := range t.Fields() {
		if strings.EqualFold(field.Name, name) {
			return member{field.Name, dotted(path, field.Name), field.Type}, nil
		}
		known = append(known, field.Name)
	}
	return member{path: dotted(path, name)}, fmt.Errorf("unknown name, did you mean %s? Known here are %s",
		nearest(name, known), strings.Join(known, ", "))
}

// keyNouns tell what stands in a map for a name that is no plain text.
var keyNouns = map[reflect.Type]string{
	reflect.TypeFor[peer.ID]():      "a peer ID",
	reflect.TypeFor[int]():          "a prefix length",
	reflect.TypeFor[netip.Prefix](): "a network such as 192.0.2.0/24",
}

func dotted(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// checkVal tells what is wrong with a single limit.
func checkVal(val json.Unmarshaler, raw []byte) error {
	// If it is out of range, ParseInt still gives the sign.
	if n, _ := strconv.ParseInt(strings.Trim(string(raw), `"`), 10, 64); n < 0 {
		return fmt.Errorf(`%s is negative: write "unlimited" for no limit, "blockAll" to admit nothing`, raw)
	}
	if err := val.UnmarshalJSON(raw); err == nil && string(raw) != "null" {
		return nil
	}
	most, unit := int64(math.MaxInt), "a whole number"
	if _, ok := val.(*LimitVal64); ok {
		most, unit = math.MaxInt64, "a whole number of bytes"
	}
	return fmt.Errorf(`expected %s from 0 to %d, "unlimited", "blockAll" or "default", found %s`, unit, most, describe(raw))
}

// describe gives a value as it stands in the text, if it is short.
func describe(raw []byte) string {
	switch raw[0] {
	case '{':
		return "an object"
	case '[':
		return "a list"
	}
	return fmt.Sprintf("%.40s", raw)
}

// next gives the offset of the token that will be read next.
func (f *limitFile) next() int {
	rest := bytes.TrimLeft(f.text[f.dec.InputOffset():], " \t\r\n,:")
	return len(f.text) - len(rest)
}

// errorAt adds the place to an error, if it is one. Lines and columns count
// from 1, columns in characters.
func (f *limitFile) errorAt(offset int, path string, err error) error {
	if err == nil {
		return nil
	}
	before := f.text[:max(offset, 0)]
	line := 1 + bytes.Count(before, []byte("\n"))
	column := 1 + utf8.RuneCount(before[bytes.LastIndexByte(before, '\n')+1:])
	return fmt.Errorf("limits: line %d, column %d: %s: %w", line, column, cmp.Or(path, "top level"), err)
}

// nearest gives the known name that takes the fewest edits to get to.
func nearest(name string, known []string) string {
	name = strings.ToLower(name[:min(len(name), 64)]) // longer ones are near to nothing
	best, fewest := "", math.MaxInt
	for _, k := range known {
		if n := edits(name, strings.ToLower(k)); n < fewest {
			best, fewest = k, n
		}
	}
	return best
}

// edits counts the bytes to insert, delete or replace to get from a to b
// (Levenshtein's distance).
func edits(a, b string) int {
	row := make([]int, len(b)+1) // from what has been read of a to each start of b
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replaced := diagonal
			if a[i] != b[j] {
				replaced++
			}
			diagonal = row[j+1]
			row[j+1] = min(replaced, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
