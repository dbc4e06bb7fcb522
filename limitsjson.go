package rcmgr

// The strict reader of limit files. encoding/json passes over what it does not
// know, which in a limit file means that a limit is not in force and nobody
// hears of it. So the text is first walked token by token beside the Go type
// that it is to fill, and everything that does not belong there is an error
// that tells where it stands. Only then is it read, and looked at as a whole.

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
	"os"
	"reflect"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/dustin/go-humanize"
	"github.com/libp2p/go-libp2p/core/peer"
)

// ReadLimits reads a PartialLimitConfig from JSON. It takes nothing silently:
// unknown names, names given twice, negative numbers, peer IDs that do not parse,
// null, text after the end, networks with host bits, and transient limits above those
// of the system where both are written. Each is a ConfigError that names line, column,
// place and what was expected, and the file, if in has a method Name, as an *os.File
// has; all are told at once. As in all of encoding/json, upper and lower case of the
// fixed names are the same. A byte-order mark is passed over; a text in UTF-16 or
// UTF-32, or one that is no UTF-8, is an error that says so.
//
// What does not fit the defaults that the limits are to lie on shows when they are
// built: NewLimiterFromJSON and NodeLimits.OverridesFile name the line of that, too.
//
// Beside what json.Unmarshal takes, numbers may stand in quotes, and sizes of
// memory may have units: "64MiB" is 64<<20, "64MB" 64 million bytes, "1.5GiB" 3<<29. A
// comma in them is an error, for it is read in two ways.
func ReadLimits(in io.Reader) (PartialLimitConfig, error) {
	cfg, f, err := parseLimits(in)
	if err != nil {
		return PartialLimitConfig{}, err
	}
	return f.fitting(cfg, InfiniteLimits)
}

// ReadLimitsFile is ReadLimits for a file. It reads Kubo's
// libp2p-resource-limit-overrides.json as it is. Where there is no such file, the
// error matches fs.ErrNotExist.
func ReadLimitsFile(name string) (PartialLimitConfig, error) {
	cfg, f, err := parseLimitsFile(name)
	if err != nil {
		return PartialLimitConfig{}, err
	}
	return f.fitting(cfg, InfiniteLimits)
}

// limitFile is a text and how far it has been read.
type limitFile struct {
	name string // empty if it is not known
	text []byte
	dec  *json.Decoder
	// values has the offset of each value that has been walked over, by path.
	values map[string]int
	// plain is what has been walked over as json.Unmarshal takes it, up to the
	// offset done of the text.
	plain []byte
	done  int
	errs  configErrors
}

// fitting returns what was read, unless something in it does not fit the rest, or
// the defaults on which it is to lie.
func (f *limitFile) fitting(cfg PartialLimitConfig, defaults ConcreteLimitConfig) (PartialLimitConfig, error) {
	built := cfg.Build(defaults)
	errs := built.check()
	built.checkTransient(errs, &cfg)
	if err := f.placed(errs); err != nil {
		return PartialLimitConfig{}, err
	}
	return cfg, nil
}

// parseLimitsFile is parseLimits for a file by its name.
func parseLimitsFile(name string) (PartialLimitConfig, *limitFile, error) {
	file, err := os.Open(name)
	if err != nil {
		return PartialLimitConfig{}, nil, fmt.Errorf("limits: %w", err)
	}
	defer file.Close()
	return parseLimits(file)
}

// parseLimits reads limits each of which may be as it is.
func parseLimits(in io.Reader) (cfg PartialLimitConfig, f *limitFile, err error) {
	f = &limitFile{values: make(map[string]int)}
	if named, ok := in.(interface{ Name() string }); ok {
		f.name = named.Name()
	}
	if f.text, err = io.ReadAll(in); err != nil {
		return cfg, f, fmt.Errorf("limits: %w", err)
	}
	f.text = bytes.TrimPrefix(f.text, []byte(byteOrderMark))
	if at, err := f.unreadable(); err != nil {
		f.report(at, "", err)
		return cfg, f, f.errs.err()
	}
	f.dec = json.NewDecoder(bytes.NewReader(f.text))
	f.check(reflect.TypeFor[PartialLimitConfig](), "")
	if err := f.errs.err(); err != nil {
		return cfg, f, err
	}
	if err = json.Unmarshal(append(f.plain, f.text[f.done:]...), &cfg); err != nil {
		err = fmt.Errorf("limits: %w", err)
	}
	return cfg, f, err
}

// byteOrderMark is what some editors put before a text in UTF-8. It says nothing.
const byteOrderMark = "\ufeff"

// unreadable returns why the text is no JSON in UTF-8, and the offset of that.
// encoding/json would put other characters in the place of those that it cannot
// read, and the limit would be that of another name.
func (f *limitFile) unreadable() (at int, err error) {
	if is := wideEncoding(f.text); is != "" {
		return 0, fmt.Errorf("the text is %s: save it as UTF-8", is)
	}
	for rest := f.text; len(rest) > 0; {
		r, size := utf8.DecodeRune(rest)
		if r == utf8.RuneError && size == 1 {
			return len(f.text) - len(rest), fmt.Errorf("expected UTF-8, found the byte %#x", rest[0])
		}
		rest = rest[size:]
	}
	var all json.RawMessage
	var syntax *json.SyntaxError
	if err := json.Unmarshal(f.text, &all); !errors.As(err, &syntax) {
		return 0, nil
	}
	at = int(syntax.Offset) - 1
	if at >= 0 && utf8.RuneStart(f.text[at]) && f.text[at] >= utf8.RuneSelf { // of which encoding/json names the first byte
		r, _ := utf8.DecodeRune(f.text[at:])
		return at, fmt.Errorf("unexpected character %q (%U)", r, r)
	}
	for at > 0 && !utf8.RuneStart(f.text[at]) { // the text ends with this character
		at--
	}
	return at, syntax
}

// wideEncoding returns the name of the encoding of a text whose characters have two
// or four bytes each, by its byte-order mark, or by its first characters, which in
// JSON are of one byte in UTF-8; "" for others.
func wideEncoding(text []byte) string {
	var start [4]byte
	copy(start[:], text)
	zero := func(i int) bool { return start[i] == 0 }
	switch {
	case start == [4]byte{0xff, 0xfe, 0, 0}, !zero(0) && zero(1) && zero(2) && zero(3) && len(text) >= 4:
		return "UTF-32, little endian"
	case start == [4]byte{0, 0, 0xfe, 0xff}, zero(0) && zero(1) && zero(2) && !zero(3):
		return "UTF-32, big endian"
	case start[0] == 0xff && start[1] == 0xfe, !zero(0) && zero(1) && !zero(2) && zero(3) && len(text) >= 4:
		return "UTF-16, little endian"
	case start[0] == 0xfe && start[1] == 0xff, zero(0) && !zero(1):
		return "UTF-16, big endian"
	}
	return ""
}

// placed returns errors with the places in the text that they are about, as far as it
// has any, or nil if there are none. f may be nil: there is no text.
func (f *limitFile) placed(errs *configErrors) error {
	if f != nil {
		for _, e := range errs.all {
			f.place(e)
		}
	}
	return errs.err()
}

func (f *limitFile) place(e *ConfigError) {
	for _, path := range append([]string{e.Path}, e.also...) {
		if at, ok := f.values[path]; ok && path != "" {
			e.Path = cmp.Or(e.Path, path)
			f.locate(e, at)
			return
		}
	}
	path := e.Path
	for path != "" { // what is missing is not there to point at, but what it is missing in
		path = path[:max(0, strings.LastIndexAny(path, ".["))]
		if at, ok := f.values[path]; ok && path != "" {
			f.locate(e, at)
			return
		}
	}
}

// locate says where in the text an error is. Lines and columns count from 1, columns
// in characters.
func (f *limitFile) locate(e *ConfigError, offset int) {
	before := f.text[:max(offset, 0)]
	e.File = f.name
	e.Line = 1 + bytes.Count(before, []byte("\n"))
	e.Column = 1 + utf8.RuneCount(before[bytes.LastIndexByte(before, '\n')+1:])
}

// report adds an error at a place in the text.
func (f *limitFile) report(offset int, path string, err error) {
	e := &ConfigError{Path: path, Err: err}
	if f.errs.add(e) {
		f.locate(e, offset)
	}
}

// check walks over the next value, which is to fill a t at this path, and reports
// what does not belong there. The text being valid JSON, the decoder has no errors of
// its own to tell.
func (f *limitFile) check(t reflect.Type, path string) {
	start := f.next()
	f.values[path] = start
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	val, isVal := reflect.New(t).Interface().(json.Unmarshaler)
	plain, isPlain := plainValues[t.Kind()]
	switch {
	case isVal:
		raw := f.skip()
		plain, err := plainVal(val, raw)
		if err != nil {
			f.report(start, path, err)
		}
		f.plain = append(append(f.plain, f.text[f.done:start]...), plain...)
		f.done = start + len(raw)
	case isPlain:
		raw := f.skip()
		if string(raw) == "null" || json.Unmarshal(raw, reflect.New(t).Interface()) != nil {
			f.report(start, path, fmt.Errorf("expected %s, found %s", plain, describe(raw)))
		}
	case f.text[start] != '{':
		f.report(start, path, fmt.Errorf("expected an object in braces, found %s", describe(f.skip())))
	default:
		f.checkMembers(t, path)
	}
}

// checkMembers is check for what has names.
func (f *limitFile) checkMembers(t reflect.Type, path string) {
	_, _ = f.dec.Token() // the opening brace
	seen := make(map[string]bool)
	for f.dec.More() {
		start := f.next()
		token, _ := f.dec.Token()
		m, err := memberOf(t, path, token.(string))
		if err == nil && seen[m.path] {
			err = errors.New("is given twice")
		}
		if err != nil {
			f.report(start, m.spelt, err)
			f.skip()
			continue
		}
		seen[m.path] = true
		f.check(m.elem, m.path)
	}
	_, _ = f.dec.Token() // the closing brace
}

// skip reads the next value as it stands.
func (f *limitFile) skip() json.RawMessage {
	var raw json.RawMessage
	_ = f.dec.Decode(&raw)
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
	path  string // one for all spellings of the name, as limits that are built have it
	elem  reflect.Type
}

// memberOf looks up a name among the fields of a struct, or takes it as a key
// of a map. On an error, only spelt is there.
func memberOf(t reflect.Type, path, name string) (member, error) {
	if t.Kind() == reflect.Map {
		m := member{spelt: fmt.Sprintf("%s[%q]", path, name), elem: t.Elem()}
		key, err := keyOfMap(t, name)
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

// unknownName is an error whose text is made when it is read: of many, few are.
type unknownName struct {
	name  string
	known []string
}

func (e *unknownName) Error() string {
	return fmt.Sprintf("unknown name, did you mean %s? Known here are %s", nearest(e.name, e.known), strings.Join(e.known, ", "))
}

// keyOfMap returns the one spelling of a key of the map t.
func keyOfMap(t reflect.Type, name string) (string, error) {
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
		return "", fmt.Errorf("expected %s: %w", cmp.Or(keyNouns[t.Key()], "a name"), err)
	}
	if network, ok := key.(*netip.Prefix); ok {
		err := checkHostBits(*network)
		*network = normalPrefix(*network)
		return network.String(), err
	}
	return fmt.Sprint(reflect.ValueOf(key).Elem()), nil
}

// checkHostBits returns an error for a network that is not written by its first
// address: it may be meant as the network or as the address.
func checkHostBits(network netip.Prefix) error {
	if !network.IsValid() || network == network.Masked() {
		return nil
	}
	addr := network.Addr()
	return fmt.Errorf("has host bits, did you mean %s or %s?",
		normalPrefix(network), normalPrefix(netip.PrefixFrom(addr, addr.BitLen())))
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

// plainVal gives a single value as json.Unmarshal takes it, or tells what is wrong
// with it.
func plainVal(val json.Unmarshaler, raw []byte) ([]byte, error) {
	var text string
	quoted := json.Unmarshal(raw, &text) == nil && string(raw) != "null"
	if !quoted {
		text = string(raw)
	}
	most, what, words := int64(math.MaxInt), "a whole number", `"unlimited", "blockAll" or "default"`
	negative := `write "unlimited" for no limit, "blockAll" to admit nothing`
	isBytes := true
	switch val.(type) {
	case *LimitVal:
		isBytes = false
	case *Cost:
		words, negative = `or "none"`, `write "none" for no cost`
	}
	if isBytes {
		most, what = math.MaxInt64, `a whole number of bytes or a size such as "64MiB"`
	}
	// If it is out of range, ParseInt still gives the sign.
	n, err := strconv.ParseInt(text, 10, 64)
	if n < 0 {
		return nil, fmt.Errorf(`%s is negative: %s`, raw, negative)
	}
	if err != nil && quoted && isBytes {
		n, err = parseSize(text)
	}
	plain := raw
	if err == nil {
		plain = strconv.AppendInt(nil, n, 10)
	}
	if string(raw) != "null" && val.UnmarshalJSON(plain) == nil {
		return plain, nil
	}
	return nil, fmt.Errorf(`expected %s from 0 to %d, %s, found %s`, what, most, words, describe(raw))
}

// parseSize reads a size with a unit: "64MiB", "1.5 GB". A comma is a point to some
// people and nothing to others. Less than one byte would be read as none at all.
func parseSize(text string) (int64, error) {
	if !strings.ContainsFunc(text, unicode.IsLetter) || strings.Contains(text, ",") {
		return 0, errors.New("no size")
	}
	n, err := humanize.ParseBytes(text)
	if err == nil && (n > math.MaxInt64 || n == 0 && strings.ContainsAny(text, "123456789")) {
		err = strconv.ErrRange
	}
	return int64(n), err
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
