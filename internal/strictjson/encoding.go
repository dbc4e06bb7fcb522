package strictjson

// Texts that are no JSON in UTF-8. encoding/json would put other characters in the place
// of those that it cannot read, and a value would come to stand under another name.

import (
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"
)

// ByteOrderMark is what some editors put before a text in UTF-8. It says nothing.
const ByteOrderMark = "\ufeff"

// unreadable returns why a text is no JSON in UTF-8, and the offset of that, or nil.
func unreadable(text []byte) (at int, err error) {
	if is := wideEncoding(text); is != "" {
		return 0, fmt.Errorf("the text is %s: save it as UTF-8", is)
	}
	for rest := text; len(rest) > 0; {
		r, size := utf8.DecodeRune(rest)
		if r == utf8.RuneError && size == 1 {
			return len(text) - len(rest), fmt.Errorf("expected UTF-8, found the byte %#x", rest[0])
		}
		rest = rest[size:]
	}
	var all json.RawMessage
	var syntax *json.SyntaxError
	if err := json.Unmarshal(text, &all); !errors.As(err, &syntax) {
		return 0, nil
	}
	at = int(syntax.Offset) - 1
	if at >= 0 && utf8.RuneStart(text[at]) && text[at] >= utf8.RuneSelf { // of which encoding/json names the first byte
		r, _ := utf8.DecodeRune(text[at:])
		return at, fmt.Errorf("unexpected character %q (%U)", r, r)
	}
	for at > 0 && !utf8.RuneStart(text[at]) { // the text ends with this character
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
