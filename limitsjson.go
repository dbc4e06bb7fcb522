package rcmgr

// The readers of limit files. encoding/json ignores names that it does not know; in a limit
// file that would mean a limit that is not in force, without any sign of it. Readers that only
// this package has return an error. Readers that go-libp2p has, too, pass over what those pass
// over, so that no node fails to start for it, and log it. internal/strictjson walks over the
// text beside the Go type that it fills. This file says what limits look like, and checks them
// together once they have been read.

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/weir-p2p/rcmgr/internal/bytesize"
	"github.com/weir-p2p/rcmgr/internal/ip"
	"github.com/weir-p2p/rcmgr/internal/strictjson"
)

// ReadLimits reads a PartialLimitConfig from JSON. Unlike json.Unmarshal it ignores
// nothing. These are errors: unknown names, names given twice, negative numbers, invalid
// peer IDs, null, text after the end, networks with host bits, and transient limits above
// those of the system where both are written. Each is a ConfigError that has line,
// column, path and what was expected, and the name of the file if in has a method Name,
// as an *os.File does. ReadLimits returns all errors together, and then no limits. An error of
// the reader is wrapped. As everywhere in encoding/json, the fixed names may
// be written in upper or lower case. A byte-order mark is skipped. Text in UTF-16 or
// UTF-32, or that is not valid UTF-8, is an error that says so, and so is one of more than
// 256 MiB.
//
// ReadLimits does not know the defaults, so it cannot tell whether the limits fit them.
// NodeLimits.Build checks that, too, for an OverridesFile, and reports the line.
//
// In addition to what json.Unmarshal accepts, numbers may be in quotes, and sizes of
// memory may have units: "64MiB" is 64<<20, "64MB" is 64 million bytes, "1.5GiB" is
// 3<<29. A comma in a size is an error, because in some languages it is the decimal
// point. Limits that the text does not name have the zero value, which leaves them to the
// defaults. ReadLimits is safe for concurrent use with different readers.
func ReadLimits(in io.Reader) (PartialLimitConfig, error) {
	cfg, f, err := parseLimits(in, nil)
	if err != nil {
		return PartialLimitConfig{}, err
	}
	return f.fitting(cfg, InfiniteLimits)
}

// ReadLimitsFile is ReadLimits for the file with this name. It reads Kubo's
// libp2p-resource-limit-overrides.json unchanged. If the file does not exist, the error
// matches fs.ErrNotExist. ReadLimitsFile is safe for concurrent use.
func ReadLimitsFile(name string) (PartialLimitConfig, error) {
	cfg, f, err := parseLimitsFile(name)
	if err != nil {
		return PartialLimitConfig{}, err
	}
	return f.fitting(cfg, InfiniteLimits)
}

// limitFile is a text that limits were read from.
type limitFile struct {
	name string // empty if it is not known
	text *strictjson.Text
	errs configErrors
}

// fitting returns cfg, which was read from the file, or an error if its limits contradict
// each other or the defaults that it is to be built on.
func (f *limitFile) fitting(cfg PartialLimitConfig, defaults ConcreteLimitConfig) (PartialLimitConfig, error) {
	built := cfg.Build(defaults)
	errs := built.check()
	built.checkTransient(errs, &cfg)
	if err := f.placed(errs); err != nil {
		return PartialLimitConfig{}, err
	}
	return cfg, nil
}

// parseLimitsFile is parseLimits for the file with this name.
func parseLimitsFile(name string) (PartialLimitConfig, *limitFile, error) {
	file, err := os.Open(name)
	if err != nil {
		return PartialLimitConfig{}, nil, fmt.Errorf("limits: %w", err)
	}
	defer file.Close()
	return parseLimits(file, nil)
}

// mostLimits is the largest size of a text that is read, in bytes: a file may name a million peers.
const mostLimits = 256 << 20

// prefix returns the name of the file, if it is known, for an error that has no place in it.
func (f *limitFile) prefix() string {
	if f.name == "" {
		return ""
	}
	return f.name + ": "
}

// parseLimits reads limits and checks each by itself; fitting checks them together. lenient
// reports at which places it passes over faults, which then are in f.errs and no error.
func parseLimits(in io.Reader, lenient func(path string) bool) (cfg PartialLimitConfig, f *limitFile, err error) {
	f = new(limitFile)
	if named, ok := in.(interface{ Name() string }); ok {
		f.name = named.Name()
	}
	text, err := io.ReadAll(io.LimitReader(in, mostLimits+1))
	if err != nil {
		return cfg, f, fmt.Errorf("limits: %w", err)
	}
	if len(text) > mostLimits {
		return cfg, f, fmt.Errorf("limits: %smore than %d MiB, which no file of limits has", f.prefix(), mostLimits>>20)
	}
	f.text, err = strictjson.Decode(text, &cfg, strictjson.Hooks{
		Value: plainVal, Key: normalKey, KeyNouns: keyNouns, Report: f.report, Lenient: lenient,
	})
	if err != nil {
		err = fmt.Errorf("limits: %w", err)
	}
	if lenient == nil || f.errs.fatal > 0 {
		err = cmp.Or(f.errs.err(), err)
	}
	return cfg, f, err
}

// readUpstream reports whether go-libp2p's manager reads what stands at a path, or passes over
// it. It knows nothing of costs, gates and rates.
func readUpstream(path string) bool {
	section, _, _ := strings.Cut(path, ".")
	inScope := path[strings.LastIndexByte(path, ']')+1:] // without the name, which may have dots
	return section != "Costs" && section != "Gates" && !strings.Contains(inScope, ".Rates.")
}

// placed returns the errors, each with its place in the text if it has one, or nil if
// there are none. f is nil if the limits were not read from a text.
func (f *limitFile) placed(errs *configErrors) error {
	if f != nil {
		for _, e := range errs.all {
			f.place(e)
		}
	}
	return errs.err()
}

// place sets the position in the text of what an error is about, if the text has it.
func (f *limitFile) place(e *ConfigError) {
	for _, path := range append([]string{e.Path}, e.also...) {
		if at, ok := f.text.At(path); ok && path != "" {
			e.Path = cmp.Or(e.Path, path)
			f.locate(e, at)
			return
		}
	}
	// A field that is missing has no position, but the object that lacks it has.
	if at, ok := f.text.Around(e.Path); ok {
		f.locate(e, at)
	}
}

// locate sets the file, line and column of an error.
func (f *limitFile) locate(e *ConfigError, at strictjson.Place) {
	e.File = f.name
	e.Line, e.Column = at.Position()
}

// report adds an error at a place in the text.
func (f *limitFile) report(at strictjson.Place, path string, err error) {
	e := &ConfigError{Path: path, Err: err}
	var passable *strictjson.Passable
	if errors.As(err, &passable) && readUpstream(path) {
		e.Err, e.then = passable.Err, whatThen(passable.Then, path)
	}
	if f.errs.add(e) {
		f.locate(e, at)
	}
}

// normalKey brings a key that is a network into the form that built limits use.
func normalKey(key any) error {
	network, ok := key.(*netip.Prefix)
	if !ok {
		return nil
	}
	err := checkHostBits(*network)
	*network = ip.NormalPrefix(*network)
	return err
}

// checkHostBits returns an error for a network that is not written with its first
// address: its author may have meant the network or the address.
func checkHostBits(network netip.Prefix) error {
	if !network.IsValid() || network == network.Masked() {
		return nil
	}
	addr := network.Addr()
	return fmt.Errorf("has host bits, did you mean %s or %s?",
		ip.NormalPrefix(network), ip.NormalPrefix(netip.PrefixFrom(addr, addr.BitLen())))
}

// keyNouns has what is expected as the key of a map, by its type.
var keyNouns = map[reflect.Type]string{
	reflect.TypeFor[peer.ID]():      "a peer ID",
	reflect.TypeFor[int]():          "a prefix length",
	reflect.TypeFor[netip.Prefix](): "a network such as 192.0.2.0/24",
}

// plainVal returns a single value in the form that json.Unmarshal accepts, or an error
// that says what is wrong with it. If it returns both, json.Unmarshal accepts the value with
// another meaning than its author may think.
func plainVal(val json.Unmarshaler, raw []byte) ([]byte, error) {
	if _, ok := val.(*Rate); ok {
		rate, err := parseRate(raw)
		if err == nil {
			_, err = rate.bucket()
		}
		return raw, err
	}
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
	// Out of range, ParseInt still returns a number with the right sign.
	n, err := strconv.ParseInt(text, 10, 64)
	if n < 0 {
		err := fmt.Errorf(`%s is negative: %s`, raw, negative)
		if then := readsNegative(val, raw, n); then != "" {
			return raw, &strictjson.Passable{Err: err, Then: then}
		}
		return nil, err
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
	err = fmt.Errorf(`expected %s from 0 to %d, %s, found %s`, what, most, words, strictjson.Describe(raw))
	if string(raw) == "null" && val.UnmarshalJSON(raw) == nil {
		return raw, &strictjson.Passable{Err: err, Then: `it reads as "blockAll"`}
	}
	return nil, err
}

// readsNegative returns what val makes of the negative number raw, or "" if it refuses it.
func readsNegative(val json.Unmarshaler, raw []byte, n int64) string {
	if val.UnmarshalJSON(raw) != nil {
		return ""
	}
	if word, ok := limitWords[n]; ok {
		return "it reads as " + word
	}
	return refusesAll
}

// parseSize returns the number of bytes of a size with a unit: "64MiB", "1.5 GB".
func parseSize(text string) (int64, error) {
	if !strings.ContainsFunc(text, unicode.IsLetter) {
		return 0, errors.New("no unit")
	}
	return bytesize.Parse(text)
}

// UnmarshalJSON reads the JSON of a PartialLimitConfig. Limits that it does not mention keep
// their values. If it fails, cfg does not change. Like json.Unmarshal, it ignores unknown
// names; ReadLimits rejects them.
func (cfg *ConcreteLimitConfig) UnmarshalJSON(b []byte) error {
	var changes PartialLimitConfig
	if err := json.Unmarshal(b, &changes); err != nil {
		return err
	}
	*cfg = changes.Build(*cfg)
	return nil
}

// NewLimiterFromJSON returns a Limiter made from the JSON of a PartialLimitConfig, built
// on the given defaults.
//
// It reads what ReadLimits reads. But it ignores the mistakes that go-libp2p's function of this
// name ignores, so that a node goes on starting with its file: unknown and repeated names,
// negative numbers, null, empty names, bytes that are not UTF-8, and text after the first
// value. For each mistake it logs one line with the place, what was expected and the effect,
// at most 20 lines for a text. With WithStrictConfig, New refuses a Limiter
// that was read from such a text. Other errors, and every error about Costs and Gates, are
// returned as ReadLimits returns them.
func NewLimiterFromJSON(in io.Reader, defaults ConcreteLimitConfig) (Limiter, error) {
	cfg, f, err := parseLimits(in, readUpstream)
	if err != nil {
		return nil, err
	}
	built := cfg.Build(defaults)
	f.addUnread(built.check())
	together := new(configErrors)
	built.checkTransient(together, &cfg)
	f.addUnread(together)
	if err := f.errs.orPassedOver(false); err != nil {
		return nil, err
	}
	built.passedOver = f.errs.err()
	return NewFixedLimiter(built), nil
}

// addUnread adds errors that show once the limits are built to those that showed when the text
// was read, except those about the same values.
func (f *limitFile) addUnread(errs *configErrors) {
	read := make(map[string]bool)
	for _, e := range f.errs.all {
		read[e.Path] = true
	}
	f.placed(errs)
	errs.all = slices.DeleteFunc(errs.all, func(e *ConfigError) bool { return read[e.Path] })
	f.errs.join(errs.err())
}

// NewDefaultLimiterFromJSON is NewLimiterFromJSON with DefaultLimits.AutoScale() as the
// defaults.
func NewDefaultLimiterFromJSON(in io.Reader) (Limiter, error) {
	return NewLimiterFromJSON(in, DefaultLimits.AutoScale())
}
