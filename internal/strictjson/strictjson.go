// Package strictjson reads configuration files in JSON, and ignores nothing in them without
// saying so. encoding/json ignores names that it does not know, keeps the last of two values under one name,
// and stops at the first value that does not fit. Package strictjson first compares the text,
// token by token, with the Go type that it is to fill. It reports everything that does not
// belong there, each fault with its place in the text and its path in the configuration. Only a
// text without faults, or with faults that encoding/json passes over and the caller allows, is
// then read by encoding/json.
package strictjson

import (
	"bytes"
	"cmp"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Hooks are the functions by which the caller of Decode checks values beyond their Go types, and
// receives the faults. All fields but KeyNouns must be set.
type Hooks struct {
	// Value checks a value whose type has UnmarshalJSON. It returns the JSON that
	// UnmarshalJSON is to read in place of raw, or an error that says what is wrong. raw is
	// the value as written in the text. to is a new value of the type.
	Value func(to json.Unmarshaler, raw []byte) ([]byte, error)
	// Key checks the key of a map to which key points. It may replace the key, and must
	// do so if a key has several spellings, so that all of them become the same key.
	Key func(key any) error
	// KeyNouns has a noun for the keys of a map by their type, such as "a prefix length". It
	// is used in errors. For other types the noun is "a name".
	KeyNouns map[reflect.Type]string
	// Report is called for every fault, in the order of the text. The path is that of the
	// value as it is spelt, such as `Peers["x"].Port`, or empty for the whole text. There
	// may be very many faults. Positions and error texts take long to make, so Report should
	// ask for them only where it keeps them.
	Report func(at Place, path string, err error)
	// Lenient reports whether faults at a path that are a *Passable are passed over: they are
	// reported, but the text is read all the same. A nil Lenient passes over nothing.
	Lenient func(path string) bool
}

// Passable is a fault that encoding/json passes over.
type Passable struct {
	Err  error
	Then string // what encoding/json makes of it
}

// Error returns what is wrong.
func (p *Passable) Error() string { return p.Err.Error() }

// Unwrap returns Err.
func (p *Passable) Unwrap() error { return p.Err }

// Text is a text that has been read, with the place of each value in it. It is immutable, and
// safe for concurrent use.
type Text struct {
	text []byte
	// values has the offset of each value that check has reached, by path.
	values map[string]int
}

// Place is a place in a text.
type Place struct{ before []byte }

// Position returns the line and column of the place. Both count from 1, and columns count
// characters. Position reads all of the text before the place.
func (p Place) Position() (line, column int) {
	line = 1 + bytes.Count(p.before, []byte("\n"))
	return line, 1 + utf8.RuneCount(p.before[bytes.LastIndexByte(p.before, '\n')+1:])
}

// Decode reads a text into the struct or map to which v points. The value may consist of
// structs, whose fields have their Go names in the text, in upper or lower case; maps whose keys
// are strings, ints or types with UnmarshalText; pointers to structs and maps; bool and float64;
// and types with UnmarshalJSON. If there is a fault, v is not changed, and the fault is reported
// by h.Report. The error that Decode returns is one of encoding/json for a text in which no
// fault was found.
//
// A byte-order mark before the text is ignored. A text that is not JSON in UTF-8 is reported as
// one fault. If Lenient passes over it, bytes that are not UTF-8 are read as U+FFFD, and text
// after the first value is ignored.
func Decode(text []byte, v any, h Hooks) (*Text, error) {
	t := &Text{text: bytes.TrimPrefix(text, []byte(ByteOrderMark)), values: make(map[string]int)}
	w := walk{Text: t, hooks: h}
	if w.readable(); w.faulty {
		return t, nil
	}
	w.dec = json.NewDecoder(bytes.NewReader(t.text))
	w.check(reflect.TypeOf(v).Elem(), "")
	if w.faulty {
		return t, nil
	}
	return t, json.Unmarshal(append(w.plain, t.text[w.done:]...), v)
}

// At returns the place of the value at a path, and reports whether the text has such a value. In
// the path, fields have their Go names, and keys are as Hooks.Key left them.
func (t *Text) At(path string) (Place, bool) {
	at, ok := t.values[path]
	return t.place(at), ok
}

// Around returns the place of the innermost value in the text that encloses a path, and reports
// whether there is one other than the whole text.
func (t *Text) Around(path string) (Place, bool) {
	for path != "" {
		path = path[:max(0, strings.LastIndexAny(path, ".["))]
		if at, ok := t.values[path]; ok && path != "" {
			return t.place(at), true
		}
	}
	return Place{}, false
}

func (t *Text) place(offset int) Place { return Place{t.text[:max(offset, 0)]} }

// walk is the state of one comparison of a text with a Go type.
type walk struct {
	*Text
	hooks Hooks
	dec   *json.Decoder
	// plain is the text up to the offset done, with the replacements of Hooks.Value, as
	// json.Unmarshal is to read it.
	plain  []byte
	done   int
	faulty bool // something was reported
}

// report calls Hooks.Report for a fault, and reports whether it is passed over.
func (w *walk) report(offset int, path string, err error) (passed bool) {
	var passable *Passable
	passed = w.hooks.Lenient != nil && errors.As(err, &passable) && w.hooks.Lenient(path)
	w.faulty = w.faulty || !passed
	w.hooks.Report(w.place(offset), path, err)
	return passed
}

// readable reports what in the text is not JSON in UTF-8, as long as that is passed over.
func (w *walk) readable() {
	at, err := unreadableBytes(w.text)
	if err != nil && !w.report(at, "", err) {
		return
	}
	at, err = unreadableJSON(w.text)
	if err == nil {
		return
	}
	// A Decoder reads the first value and does not look at what follows.
	dec := json.NewDecoder(bytes.NewReader(w.text))
	var first json.RawMessage
	if dec.Decode(&first) == nil {
		err = &Passable{err, "the text after the first value is ignored"}
	}
	if w.report(at, "", err) {
		w.text = w.text[:dec.InputOffset()]
	}
}

// wantObject reports a value that is not an object.
func (w *walk) wantObject(start int, path string) {
	raw := w.skip()
	err := fmt.Errorf("expected an object in braces, found %s", Describe(raw))
	if string(raw) == "null" {
		err = &Passable{err, "it reads as if it were left out"}
	}
	w.report(start, path, err)
}

// check reads the next value, which is to fill a t at this path, and reports everything that does
// not belong there. The text is valid JSON, so the decoder's errors need not be checked.
func (w *walk) check(t reflect.Type, path string) {
	start := w.next()
	w.values[path] = start
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	val, isVal := reflect.New(t).Interface().(json.Unmarshaler)
	plain, isPlain := plainValues[t.Kind()]
	switch {
	case isVal:
		raw := w.skip()
		plain, err := w.hooks.Value(val, raw)
		if err != nil {
			w.report(start, path, err)
		}
		w.plain = append(append(w.plain, w.text[w.done:start]...), plain...)
		w.done = start + len(raw)
	case isPlain:
		raw := w.skip()
		if string(raw) == "null" || json.Unmarshal(raw, reflect.New(t).Interface()) != nil {
			w.report(start, path, fmt.Errorf("expected %s, found %s", plain, Describe(raw)))
		}
	case w.text[start] != '{':
		w.wantObject(start, path)
	default:
		w.checkMembers(t, path)
	}
}

// checkMembers is check for an object, which is to fill a struct or a map.
func (w *walk) checkMembers(t reflect.Type, path string) {
	_, _ = w.dec.Token() // the opening brace
	seen := make(map[string]bool)
	for w.dec.More() {
		start := w.next()
		token, _ := w.dec.Token()
		m, err := w.memberOf(t, path, token.(string))
		if err == nil && seen[m.path] {
			then := "the last one holds"
			if t.Kind() == reflect.Struct {
				then = "for each value in it, the last one holds"
			}
			err = &Passable{errors.New("is given twice"), then}
		}
		if err != nil && !(w.report(start, m.spelt, err) && m.path != "") {
			w.skip()
			continue
		}
		seen[m.path] = true
		w.check(m.elem, m.path)
	}
	_, _ = w.dec.Token() // the closing brace
}

// next returns the offset of the token that is read next.
func (w *walk) next() int {
	rest := bytes.TrimLeft(w.text[w.dec.InputOffset():], " \t\r\n,:")
	return len(w.text) - len(rest)
}

// skip reads the next value and returns it as written.
func (w *walk) skip() json.RawMessage {
	var raw json.RawMessage
	_ = w.dec.Decode(&raw)
	return raw
}

// plainValues has the kinds of values that encoding/json checks by itself, with a noun for each.
var plainValues = map[reflect.Kind]string{
	reflect.Bool:    "true or false",
	reflect.Float64: "a number",
}

// member is the field or map element that a name in an object stands for.
type member struct {
	spelt string // the path with the name as written in the text
	path  string // the path that is the same for all spellings of the name
	elem  reflect.Type
}

// memberOf returns the field of the struct t, or the element of the map t, that has a name. If it
// returns an error, path is only set if encoding/json reads the value in spite of it.
func (w *walk) memberOf(t reflect.Type, path, name string) (member, error) {
	if t.Kind() == reflect.Map {
		m := member{spelt: fmt.Sprintf("%s[%q]", path, name), elem: t.Elem()}
		key, err := w.keyOfMap(t, name)
		var passable *Passable
		if err == nil || errors.As(err, &passable) {
			m.path = fmt.Sprintf("%s[%q]", path, key)
		}
		return m, err
	}
	var known []string
	for i := range t.NumField() {
		field := t.Field(i)
		if strings.EqualFold(field.Name, name) {
			in := dotted(path, field.Name)
			return member{in, in, field.Type}, nil
		}
		known = append(known, field.Name)
	}
	return member{spelt: dotted(path, name)}, &Passable{&unknownName{name, known}, "it is ignored"}
}

// keyOfMap returns the one spelling of a key of the map t.
func (w *walk) keyOfMap(t reflect.Type, name string) (string, error) {
	key := reflect.New(t.Key()).Interface()
	var err error
	switch key := key.(type) {
	case *int:
		if *key, err = strconv.Atoi(name); err != nil {
			err = notWhole(name)
		}
	case encoding.TextUnmarshaler:
		err = key.UnmarshalText([]byte(name))
	default:
		reflect.ValueOf(key).Elem().SetString(name)
	}
	expected := func(err error) error {
		return fmt.Errorf("expected %s: %w", cmp.Or(w.hooks.KeyNouns[t.Key()], "a name"), err)
	}
	if err != nil {
		return "", expected(err)
	}
	if name == "" { // no key may be empty
		return "", &Passable{expected(errors.New("it is empty")), "nothing has this name"}
	}
	err = w.hooks.Key(key)
	return fmt.Sprint(reflect.ValueOf(key).Elem()), err
}

// notWhole returns the error for a key that is not a whole number.
func notWhole(name string) error {
	if _, err := strconv.Atoi(strings.TrimPrefix(name, "/")); err == nil {
		return fmt.Errorf("write %q, not %q", strings.TrimPrefix(name, "/"), name)
	}
	return fmt.Errorf("%q is not a whole number", name)
}

func dotted(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// Describe returns a description of a value for an error: "an object", "a list", or the value as
// written, cut to 40 characters.
func Describe(raw []byte) string {
	switch raw[0] {
	case '{':
		return "an object"
	case '[':
		return "a list"
	}
	return fmt.Sprintf("%.40s", raw)
}
