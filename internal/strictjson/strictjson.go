// Package strictjson reads configuration files in JSON so that nothing in them is passed
// over. encoding/json ignores names that it does not know, keeps the last of two values
// under one name, and stops at the first value that does not fit. Here the text is first
// walked token by token beside the Go type that it is to fill, and everything that does
// not belong there is reported, each with its place in the text and its path in the
// configuration. Only a text without such faults is then read by encoding/json.
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

// Hooks is what the program that reads a text knows of its values, beside what their Go
// types tell. All but KeyNouns must be set.
type Hooks struct {
	// Value returns a value as its UnmarshalJSON is to read it, or what is wrong with it,
	// for types with such a method. raw is the value as it stands in the text. to is new.
	Value func(to json.Unmarshaler, raw []byte) ([]byte, error)
	// Key checks a key of a map, to which key points. It may put another in its place:
	// all spellings of one key must come out the same.
	Key func(key any) error
	// KeyNouns tell what is expected as key of a map, by the type of the keys: "a prefix
	// length". For others that is "a name".
	KeyNouns map[reflect.Type]string
	// Report is told everything that is wrong, in the order of the text. The path is that
	// of the value as it is spelt, such as `Peers["x"].Port`, or empty for all of the
	// text. There may be very many, and what is not kept should not be asked for its
	// position or text, which take long to make.
	Report func(at Place, path string, err error)
}

// Text is a text that has been read, and knows what stands where. It does not change, and
// is safe for concurrent use.
type Text struct {
	text []byte
	// values has the offset of each value that has been walked over, by path.
	values map[string]int
}

// Place is a place in a text.
type Place struct{ before []byte }

// Position returns the line and column of the place, both from 1, columns in characters. It
// reads all of the text before it.
func (p Place) Position() (line, column int) {
	line = 1 + bytes.Count(p.before, []byte("\n"))
	return line, 1 + utf8.RuneCount(p.before[bytes.LastIndexByte(p.before, '\n')+1:])
}

// Decode reads a text into what v points to, a struct or map. It takes these types: structs,
// whose fields go by their Go names, upper and lower case being the same; maps with
// keys that are texts, ints or have UnmarshalText; pointers to structs and maps; bool,
// float64, and all that has UnmarshalJSON. Where anything was reported, v stays as it was.
// An error is one of encoding/json that no report has told before.
//
// A byte-order mark before the text is passed over. What is no JSON in UTF-8 is reported
// as one thing.
func Decode(text []byte, v any, h Hooks) (*Text, error) {
	t := &Text{text: bytes.TrimPrefix(text, []byte(ByteOrderMark)), values: make(map[string]int)}
	if at, err := unreadable(t.text); err != nil {
		h.Report(t.place(at), "", err)
		return t, nil
	}
	w := walk{Text: t, hooks: h, dec: json.NewDecoder(bytes.NewReader(t.text))}
	w.check(reflect.TypeOf(v).Elem(), "")
	if w.faulty {
		return t, nil
	}
	return t, json.Unmarshal(append(w.plain, t.text[w.done:]...), v)
}

// At returns the place of the value at a path, and whether the text has one. In paths of
// this kind names are as Go has them, and keys as Hooks.Key leaves them.
func (t *Text) At(path string) (Place, bool) {
	at, ok := t.values[path]
	return t.place(at), ok
}

// Around returns the place of the innermost value that the text has around a path, and
// whether there is one below the top.
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

// walk is a text and how far it has been walked over.
type walk struct {
	*Text
	hooks Hooks
	dec   *json.Decoder
	// plain is what has been walked over as json.Unmarshal takes it, up to the
	// offset done of the text.
	plain  []byte
	done   int
	faulty bool // something was reported
}

func (w *walk) report(offset int, path string, err error) {
	w.faulty = true
	w.hooks.Report(w.place(offset), path, err)
}

// check walks over the next value, which is to fill a t at this path, and reports
// what does not belong there. The text being valid JSON, the decoder has no errors of
// its own to tell.
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
		w.report(start, path, fmt.Errorf("expected an object in braces, found %s", Describe(w.skip())))
	default:
		w.checkMembers(t, path)
	}
}

// checkMembers is check for what has names.
func (w *walk) checkMembers(t reflect.Type, path string) {
	_, _ = w.dec.Token() // the opening brace
	seen := make(map[string]bool)
	for w.dec.More() {
		start := w.next()
		token, _ := w.dec.Token()
		m, err := w.memberOf(t, path, token.(string))
		if err == nil && seen[m.path] {
			err = errors.New("is given twice")
		}
		if err != nil {
			w.report(start, m.spelt, err)
			w.skip()
			continue
		}
		seen[m.path] = true
		w.check(m.elem, m.path)
	}
	_, _ = w.dec.Token() // the closing brace
}

// next returns the offset of the token that will be read next.
func (w *walk) next() int {
	rest := bytes.TrimLeft(w.text[w.dec.InputOffset():], " \t\r\n,:")
	return len(w.text) - len(rest)
}

// skip reads the next value as it stands.
func (w *walk) skip() json.RawMessage {
	var raw json.RawMessage
	_ = w.dec.Decode(&raw)
	return raw
}

// plainValues are the values that encoding/json reads by itself.
var plainValues = map[reflect.Kind]string{
	reflect.Bool:    "true or false",
	reflect.Float64: "a number",
}

// member is what a name in an object stands for.
type member struct {
	spelt string // the path with the name as it stands in the text
	path  string // one for all spellings of the name
	elem  reflect.Type
}

// memberOf looks up a name among the fields of a struct, or takes it as a key
// of a map. On an error, only spelt is there.
func (w *walk) memberOf(t reflect.Type, path, name string) (member, error) {
	if t.Kind() == reflect.Map {
		m := member{spelt: fmt.Sprintf("%s[%q]", path, name), elem: t.Elem()}
		key, err := w.keyOfMap(t, name)
		if err != nil {
			return m, err
		}
		m.path = fmt.Sprintf("%s[%q]", path, key)
		return m, nil
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
	return member{spelt: dotted(path, name)}, &unknownName{name, known}
}

// keyOfMap returns the one spelling of a key of the map t.
func (w *walk) keyOfMap(t reflect.Type, name string) (string, error) {
	key := reflect.New(t.Key()).Interface()
	var err error
	switch key := key.(type) {
	case *int:
		*key, err = strconv.Atoi(name)
	case encoding.TextUnmarshaler:
		err = key.UnmarshalText([]byte(name))
	default:
		reflect.ValueOf(key).Elem().SetString(name)
	}
	if name == "" { // which nothing has
		err = cmp.Or(err, errors.New("it is empty"))
	}
	if err != nil {
		return "", fmt.Errorf("expected %s: %w", cmp.Or(w.hooks.KeyNouns[t.Key()], "a name"), err)
	}
	err = w.hooks.Key(key)
	return fmt.Sprint(reflect.ValueOf(key).Elem()), err
}

func dotted(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// Describe returns a value for a message that says what was found: as it stands in the
// text, if it is short.
func Describe(raw []byte) string {
	switch raw[0] {
	case '{':
		return "an object"
	case '[':
		return "a list"
	}
	return fmt.Sprintf("%.40s", raw)
}
