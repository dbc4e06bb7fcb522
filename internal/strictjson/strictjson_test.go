package strictjson

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/stretchr/testify/require"
)

// config has a field of each type that Decode accepts.
type config struct {
	Name    amount
	On      bool
	Factor  float64
	Inner   inner
	Maybe   *inner
	Named   map[string]inner
	ByCount map[int]amount
	ByNet   map[netip.Prefix]amount
}

type inner struct{ Low, High amount }

// amount reads itself from a number; the hook Value in decode also accepts "two".
type amount int

func (a *amount) UnmarshalJSON(b []byte) error {
	var n int
	err := json.Unmarshal(b, &n)
	*a = amount(n)
	return err
}

// decode reads a text and returns what was reported, as "line:column path: error".
func decode(t *testing.T, text string, v any) (*Text, []string) {
	var reports []string
	read, err := Decode([]byte(text), v, Hooks{
		Value: func(to json.Unmarshaler, raw []byte) ([]byte, error) {
			require.IsType(t, new(amount), to)
			if string(raw) == `"two"` {
				raw = []byte("2")
			}
			if to.UnmarshalJSON(raw) != nil {
				return nil, fmt.Errorf("expected an amount, found %s", Describe(raw))
			}
			return raw, nil
		},
		Key: func(key any) error {
			if net, ok := key.(*netip.Prefix); ok {
				*net = net.Masked()
				if net.Bits() == 0 {
					return errors.New("is everything")
				}
			}
			return nil
		},
		KeyNouns: map[reflect.Type]string{reflect.TypeFor[int](): "a count"},
		Report: func(at Place, path string, err error) {
			line, column := at.Position()
			reports = append(reports, fmt.Sprintf("%d:%d %s: %v", line, column, path, err))
		},
	})
	require.NoError(t, err)
	return read, reports
}

func TestATextWithoutFaultsFillsTheValue(t *testing.T) {
	var c config
	_, reports := decode(t, "\ufeff"+`{
		"name": "two", "ON": true, "Factor": 1e-1, "Inner": {"Low": 3, "high" : "two" }, "Maybe": {},
		"Named": {"é.[": {"Low": 1}}, "ByCount": {"7":8, "9" :"two"}, "ByNet": {"10.0.0.0/8": "two"}
	} `, &c)
	require.Empty(t, reports)
	require.Equal(t, config{Name: 2, On: true, Factor: 0.1, Inner: inner{3, 2}, Maybe: new(inner), Named: map[string]inner{"é.[": {Low: 1}},
		ByCount: map[int]amount{7: 8, 9: 2}, ByNet: map[netip.Prefix]amount{netip.MustParsePrefix("10.0.0.0/8"): 2}}, c)

	m := map[string]bool{"kept": true}
	_, reports = decode(t, `{"x": false}`, &m)
	require.Empty(t, reports)
	require.Equal(t, map[string]bool{"kept": true, "x": false}, m)
}

func TestEverythingThatDoesNotBelongIsReportedWithItsPlace(t *testing.T) {
	const known = " Known here are Name, On, Factor, Inner, Maybe, Named, ByCount, ByNet"
	for text, want := range map[string][]string{
		"{}":                           nil,
		`{"Nam":1}`:                    {"1:2 Nam: unknown name, did you mean Name?" + known},
		`{"NAMED":{"x":{"lo":{}}}}`:    {`1:16 Named["x"].lo: unknown name, did you mean Low? Known here are Low, High`},
		"{\n\"Nam\":[{}],\n \"of\":1}": {"2:1 Nam: unknown name, did you mean Name?" + known, "3:2 of: unknown name, did you mean On?" + known},
		`{"Name":1,"naMe":2,"On":0}`:   {"1:11 Name: is given twice", "1:25 On: expected true or false, found 0"},
		`{"Name":"x","Factor":"1","On":null,"Factor":2}`: {
			`1:9 Name: expected an amount, found "x"`, `1:22 Factor: expected a number, found "1"`,
			"1:31 On: expected true or false, found null", "1:36 Factor: is given twice",
		},
		`{"Name":1,"Named":{"":{"Low":1}}}`: {`1:20 Named[""]: expected a name: it is empty`},
		`{"Inner":[1],"Maybe":null,"Named":{"x":5}}`: {
			"1:10 Inner: expected an object in braces, found a list", "1:22 Maybe: expected an object in braces, found null",
			`1:40 Named["x"]: expected an object in braces, found 5`,
		},
		`{"Named":{"é":{},"\u00e9":{}}}`: {`1:18 Named["é"]: is given twice`},
		`{"Named":{"é":{}, "é":{}}}`:     {`1:19 Named["é"]: is given twice`},
		`{"ByCount":{"1":1,"01":2,"x":3,"/24":4}}`: {
			`1:19 ByCount["01"]: is given twice`, `1:26 ByCount["x"]: expected a count: "x" is not a whole number`,
			`1:32 ByCount["/24"]: expected a count: write "24", not "/24"`,
		},
		`{"ByNet":{"10.1.0.0/8":1,"10.2.0.0/8":2,"0.0.0.0/0":3,"x":4}}`: {
			`1:26 ByNet["10.2.0.0/8"]: is given twice`, `1:41 ByNet["0.0.0.0/0"]: is everything`,
			`1:55 ByNet["x"]: expected a name: netip.ParsePrefix("x"): no '/'`,
		},
		`[]`: {"1:1 : expected an object in braces, found a list"},
		`5`:  {"1:1 : expected an object in braces, found 5"},
		`{"Name":{},"Name":[],"Factor":"` + strings.Repeat("é", 50) + `"}`: {
			"1:9 Name: expected an amount, found an object", "1:12 Name: is given twice",
			`1:31 Factor: expected a number, found "` + strings.Repeat("é", 39),
		},
	} {
		c := config{Name: 77}
		_, reports := decode(t, text, &c)
		require.Equal(t, want, reports, text)
		require.Equal(t, config{Name: 77}, c)
	}
}

func TestATextThatIsNotJSONInUTF8IsReportedAsOneFault(t *testing.T) {
	wide := func(text string) string {
		var b strings.Builder
		for _, u := range utf16.Encode([]rune(text)) {
			b.Write([]byte{byte(u >> 8), byte(u)})
		}
		return b.String()
	}
	for text, want := range map[string]string{
		"":                           "1:1 : unexpected end of JSON input",
		ByteOrderMark:                "1:1 : unexpected end of JSON input",
		"{\n\"Nam\": 1,":             "2:9 : unexpected end of JSON input",
		"{}\n x":                     "2:2 : invalid character 'x' after top-level value",
		"{\n“Name”: 1}":              "2:1 : unexpected character '“' (U+201C)",
		"{\"Name\":\"\xff\"}":        "1:10 : expected UTF-8, found the byte 0xff",
		wide(`{"Name": 1}`):          "1:1 : the text is UTF-16, big endian: save it as UTF-8",
		wide("\ufeff{}"):             "1:1 : the text is UTF-16, big endian: save it as UTF-8",
		"\xff\xfe{\x00}\x00":         "1:1 : the text is UTF-16, little endian: save it as UTF-8",
		"{\x00\x00\x00}\x00\x00\x00": "1:1 : the text is UTF-32, little endian: save it as UTF-8",
		"\x00\x00\x00{\x00\x00\x00}": "1:1 : the text is UTF-32, big endian: save it as UTF-8",
		strings.Repeat("[", 100_000): "1:10001 : invalid character '[' exceeded max depth",
	} {
		_, reports := decode(t, text, new(config))
		require.Equal(t, []string{want}, reports, "%.40q", text)
	}
}

func TestAtAndAroundReturnThePlaceOfAValueAndOfTheOneThatEnclosesIt(t *testing.T) {
	text, reports := decode(t, "{\"inner\":\r\n\t{\"LOW\": 1},\n\"Named\": {\"é.[\": {\"High\": 2}}, \"ByNet\": {\"10.1.2.3/8\": 5}}", new(config))
	require.Empty(t, reports)
	position := func(p Place, ok bool) string {
		line, column := p.Position()
		return fmt.Sprint(line, ":", column, " ", ok)
	}
	for path, want := range map[string]string{
		"": "1:1 true", "Inner": "2:2 true", "Inner.Low": "2:10 true", `Named["é.["]`: "3:18 true", `Named["é.["].High`: "3:27 true",
		`ByNet["10.0.0.0/8"]`: "3:56 true", "inner": "1:1 false", "Inner.High": "1:1 false", `ByNet["10.1.2.3/8"]`: "1:1 false",
	} {
		require.Equal(t, want, position(text.At(path)), path)
	}
	for path, want := range map[string]string{
		"": "1:1 false", "Inner": "1:1 false", "Inner.High": "2:2 true", "Inner.Low": "2:2 true", `Named["é.["].Low`: "3:18 true",
		`Named["x"].Low`: "3:10 true", "Maybe.Low": "1:1 false",
	} {
		require.Equal(t, want, position(text.Around(path)), path)
	}
}

func TestTheNearestKnownNameTakesTheFewestEdits(t *testing.T) {
	known := []string{"System", "Transient", "Stream", "StreamsInbound"}
	for name, want := range map[string]string{
		"Sytem": "System", "streams": "Stream", "TRANSIENT": "Transient", "streamsinbund": "StreamsInbound", "": "System",
		strings.Repeat("x", 1<<20): "System",
	} {
		require.Equal(t, want, nearest(name, known), "%.40s", name)
	}
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"abc", "abc", 0}, {"", "abc", 3}, {"abc", "", 3}, {"kitten", "sitting", 3}, {"abc", "xabc", 1}, {"ab", "ba", 2}} {
		require.Equal(t, c.want, edits(c.a, c.b), "%q %q", c.a, c.b)
	}
}
