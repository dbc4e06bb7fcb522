package rcmgr

// The strict reader of limit files. encoding/json passes over what it does not
// know, which in a limit file means that a limit is not in force and nobody
// hears of it. internal/strictjson walks over the text beside the Go type that it
// is to fill; here stands what limits look like, and what is wrong with them as a
// whole once they have been read.

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
	"strconv"
	"strings"
	"unicode"

	"github.com/dustin/go-humanize"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/weir-p2p/rcmgr/internal/ip"
	"github.com/weir-p2p/rcmgr/internal/strictjson"
)

// ReadLimits reads a PartialLimitConfig from JSON. It passes over nothing: unknown
// names, names given twice, negative numbers, peer IDs that do not parse, null, text
// after the end, networks with host bits, and transient limits above those of the
// system where both are written are errors. Each is a ConfigError that names line,
// column, path and what was expected, and the file, if in has a method Name, as an
// *os.File has; all are returned at once, and no limits with them. An error of in
// itself is wrapped. As in all of encoding/json, upper and lower case of the fixed
// names are the same. A byte-order mark is passed over; a text in UTF-16 or UTF-32, or
// one that is no UTF-8, is an error that says so.
//
// What does not fit the defaults that the limits are to lie on shows when they are
// built: NewLimiterFromJSON and NodeLimits.OverridesFile name the line of that, too.
//
// Beside what json.Unmarshal takes, numbers may stand in quotes, and sizes of
// memory may have units: "64MiB" is 64<<20, "64MB" 64 million bytes, "1.5GiB" 3<<29. A
// comma in them is an error: in some languages it is the decimal point. What the text
// does not name has the zero value, which leaves it to the defaults.
func ReadLimits(in io.Reader) (PartialLimitConfig, error) {
	cfg, f, err := parseLimits(in)
	if err != nil {
		return PartialLimitConfig{}, err
	}
	return f.fitting(cfg, InfiniteLimits)
}

// ReadLimitsFile is ReadLimits for the file of this name. It reads Kubo's
// libp2p-resource-limit-overrides.json as it is. If there is no such file, the error
// matches fs.ErrNotExist. It is safe for concurrent use, as ReadLimits is.
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

// fitting returns cfg, which was read from the file, or an error if limits in it
// contradict each other, or the defaults that it will be laid over.
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

// parseLimits reads limits that are each valid alone; fitting checks them together.
func parseLimits(in io.Reader) (cfg PartialLimitConfig, f *limitFile, err error) {
	f = new(limitFile)
	if named, ok := in.(interface{ Name() string }); ok {
		f.name = named.Name()
	}
	text, err := io.ReadAll(in)
	if err != nil {
		return cfg, f, fmt.Errorf("limits: %w", err)
	}
	f.text, err = strictjson.Decode(text, &cfg, strictjson.Hooks{
		Value: plainVal, Key: normalKey, KeyNouns: keyNouns, Report: f.report,
	})
	if err != nil {
		err = fmt.Errorf("limits: %w", err)
	}
	return cfg, f, cmp.Or(f.errs.err(), err)
}

// placed returns the errors, each with its place in the text if it has one there, or nil
// if there are none. f is nil if there is no text.
func (f *limitFile) placed(errs *configErrors) error {
	if f != nil {
		for _, e := range errs.all {
			f.place(e)
		}
	}
	return errs.err()
}

// place notes in an error the place in the text that it is about, if the text has one.
func (f *limitFile) place(e *ConfigError) {
	for _, path := range append([]string{e.Path}, e.also...) {
		if at, ok := f.text.At(path); ok && path != "" {
			e.Path = cmp.Or(e.Path, path)
			f.locate(e, at)
			return
		}
	}
	// What is missing is not there to point at, but what it is missing in.
	if at, ok := f.text.Around(e.Path); ok {
		f.locate(e, at)
	}
}

// locate notes in an error where in the text it is.
func (f *limitFile) locate(e *ConfigError, at strictjson.Place) {
	e.File = f.name
	e.Line, e.Column = at.Position()
}

// report adds an error at a place in the text.
func (f *limitFile) report(at strictjson.Place, path string, err error) {
	e := &ConfigError{Path: path, Err: err}
	if f.errs.add(e) {
		f.locate(e, at)
	}
}

// normalKey puts a key that is a network into the spelling that built limits have.
func normalKey(key any) error {
	network, ok := key.(*netip.Prefix)
	if !ok {
		return nil
	}
	err := checkHostBits(*network)
	*network = ip.NormalPrefix(*network)
	return err
}

// checkHostBits returns an error for a network that is not written by its first
// address: it may be meant as the network or as the address.
func checkHostBits(network netip.Prefix) error {
	if !network.IsValid() || network == network.Masked() {
		return nil
	}
	addr := network.Addr()
	return fmt.Errorf("has host bits, did you mean %s or %s?",
		ip.NormalPrefix(network), ip.NormalPrefix(netip.PrefixFrom(addr, addr.BitLen())))
}

// keyNouns say what is expected as key of a map, by its type.
var keyNouns = map[reflect.Type]string{
	reflect.TypeFor[peer.ID]():      "a peer ID",
	reflect.TypeFor[int]():          "a prefix length",
	reflect.TypeFor[netip.Prefix](): "a network such as 192.0.2.0/24",
}

// plainVal returns a single value as json.Unmarshal takes it, or what is wrong with it.
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
	return nil, fmt.Errorf(`expected %s from 0 to %d, %s, found %s`, what, most, words, strictjson.Describe(raw))
}

// parseSize returns the bytes of a size with a unit: "64MiB", "1.5 GB". It refuses
// commas, which mean a point to some people and nothing to others, and less than one
// byte, which would be read as 0.
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

// UnmarshalJSON reads what a PartialLimitConfig reads, and leaves limits that
// the JSON does not mention as they are. On an error cfg is as before.
func (cfg *ConcreteLimitConfig) UnmarshalJSON(b []byte) error {
	var changes PartialLimitConfig
	if err := json.Unmarshal(b, &changes); err != nil {
		return err
	}
	*cfg = changes.Build(*cfg)
	return nil
}

// NewLimiterFromJSON makes a Limiter from a PartialLimitConfig in JSON, on top
// of the given defaults. It is as strict as ReadLimits.
func NewLimiterFromJSON(in io.Reader, defaults ConcreteLimitConfig) (Limiter, error) {
	cfg, f, err := parseLimits(in)
	if err == nil {
		cfg, err = f.fitting(cfg, defaults)
	}
	if err != nil {
		return nil, err
	}
	return NewFixedLimiter(cfg.Build(defaults)), nil
}

// NewDefaultLimiterFromJSON is NewLimiterFromJSON on top of
// DefaultLimits.AutoScale().
func NewDefaultLimiterFromJSON(in io.Reader) (Limiter, error) {
	return NewLimiterFromJSON(in, DefaultLimits.AutoScale())
}
