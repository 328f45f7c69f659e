//! PostgreSQL's array text as JSON text.
//!
//! Owns: `array_out`'s format (quotes, backslashes, nested braces, delimiters), JSON's escapes. Does not own: which arrays hold
//! numbers (`types`).
//! Invariants: elements, NULLs and dimensions are kept, digits of numbers untouched; what JSON cannot say (lower bounds
//! other than 1) and what `array_out` does not print is `Unfit`.

use super::Unfit;
use super::text::utf8;
use super::types::Element;

/// Dimensions that a PostgreSQL array can have (`MAXDIM`).
const DIMENSIONS_MAX: usize = 6;

/// The most bytes of JSON that one byte of array text becomes (`\u0001`).
pub const GROWTH_MAX: usize = 6;

/// Appends the array as JSON to `out`, without spaces. `out` holds garbage behind its old length if the text is refused.
pub fn json(raw: &[u8], element: Element, delimiter: u8, out: &mut String) -> Result<(), Unfit> {
    let text = utf8(raw)?;
    if text == "{}" {
        out.push_str("[]");
        return Ok(());
    }
    let (mut at, mut depth, mut leaf_depth) = (0, 0, None);
    // Every round reads what opens before an element, the element, and what closes behind it.
    loop {
        while raw.get(at) == Some(&b'{') {
            out.push('[');
            depth += 1;
            at += 1;
        }
        // Elements stand at one depth, or the text is no array. Depth 0 is the first byte of "[2:3]={…}", too.
        if depth == 0 || depth > DIMENSIONS_MAX || *leaf_depth.get_or_insert(depth) != depth {
            return Err(Unfit);
        }
        at = match raw.get(at) {
            Some(b'"') if element == Element::Text => quoted(text, at + 1, out)?,
            _ => unquoted(text, at, element, delimiter, out)?,
        };
        while depth > 0 && raw.get(at) == Some(&b'}') {
            out.push(']');
            depth -= 1;
            at += 1;
        }
        if depth == 0 {
            return if at == raw.len() { Ok(()) } else { Err(Unfit) };
        }
        if raw.get(at) != Some(&delimiter) {
            return Err(Unfit);
        }
        out.push(',');
        at += 1;
    }
}

/// An element in quotes, `at` behind the first of them; gives the position behind the last.
fn quoted(text: &str, mut at: usize, out: &mut String) -> Result<usize, Unfit> {
    let raw = text.as_bytes();
    out.push('"');
    loop {
        let plain = raw[at..].iter().take_while(|&&b| ESCAPES[usize::from(b)] == PLAIN).count();
        out.push_str(&text[at..at + plain]);
        at += plain;
        match *raw.get(at).ok_or(Unfit)? {
            b'"' => break,
            b'\\' => {
                // Whatever follows a backslash stands for itself; a plain character is copied by the next round.
                let next = *raw.get(at + 1).ok_or(Unfit)?;
                at += 1;
                if ESCAPES[usize::from(next)] != PLAIN {
                    escape(next, out);
                    at += 1;
                }
            }
            control => {
                escape(control, out);
                at += 1;
            }
        }
    }
    out.push('"');
    Ok(at + 1)
}

/// An element without quotes, up to the delimiter or brace behind it; gives the position behind it.
fn unquoted(text: &str, from: usize, element: Element, delimiter: u8, out: &mut String) -> Result<usize, Unfit> {
    let raw = text.as_bytes();
    let length = raw[from..].iter().take_while(|&&b| b != delimiter && !matches!(b, b'{' | b'}' | b'"' | b'\\')).count();
    // A delimiter is ASCII: every type of PostgreSQL and PostGIS has such a one; any other would cut a character in two.
    let word = text.get(from..from + length).ok_or(Unfit)?;
    match (element, word) {
        (_, "") => return Err(Unfit),
        (_, "NULL") => out.push_str("null"),
        (Element::Boolean, "t") => out.push_str("true"),
        (Element::Boolean, "f") => out.push_str("false"),
        (Element::Boolean, _) => return Err(Unfit),
        (Element::Number, "NaN" | "Infinity" | "-Infinity") => {
            out.push('"');
            out.push_str(word);
            out.push('"');
        }
        (Element::Number, _) if is_json_number(word.as_bytes()) => out.push_str(word),
        (Element::Number, _) => return Err(Unfit),
        (Element::Text, _) => json_string(word, out),
    }
    Ok(from + length)
}

/// Appends `text` as a JSON string.
fn json_string(text: &str, out: &mut String) {
    out.push('"');
    let mut rest = text;
    loop {
        let plain = rest.bytes().take_while(|&b| ESCAPES[usize::from(b)] == PLAIN).count();
        out.push_str(&rest[..plain]);
        let Some(&special) = rest.as_bytes().get(plain) else { break };
        escape(special, out);
        rest = &rest[plain + 1..];
    }
    out.push('"');
}

/// Bytes that stand for themselves in a JSON string.
const PLAIN: u8 = 0;

/// What follows the backslash for each byte that needs one (`u` for four hex digits), `PLAIN` for the others.
const ESCAPES: [u8; 256] = {
    let mut table = [PLAIN; 256];
    let mut control = 0;
    while control < 0x20 {
        table[control] = b'u';
        control += 1;
    }
    table[0x08] = b'b';
    table[b'\t' as usize] = b't';
    table[b'\n' as usize] = b'n';
    table[0x0C] = b'f';
    table[b'\r' as usize] = b'r';
    table[b'"' as usize] = b'"';
    table[b'\\' as usize] = b'\\';
    table
};

fn escape(byte: u8, out: &mut String) {
    let kind = ESCAPES[usize::from(byte)];
    out.push('\\');
    out.push(char::from(kind));
    if kind == b'u' {
        out.push_str("00");
        out.extend(super::text::hex_pair(byte).map(char::from));
    }
}

/// JSON's grammar of numbers; PostgreSQL prints finite ones within it.
fn is_json_number(text: &[u8]) -> bool {
    fn digits(text: &[u8]) -> (usize, &[u8]) {
        let count = text.iter().take_while(|b| b.is_ascii_digit()).count();
        (count, &text[count..])
    }
    let (whole, mut rest) = digits(text.strip_prefix(b"-").unwrap_or(text));
    if whole == 0 || (whole > 1 && text[text.len() - rest.len() - whole] == b'0') {
        return false;
    }
    if let Some(fraction) = rest.strip_prefix(b".") {
        let (count, behind) = digits(fraction);
        if count == 0 {
            return false;
        }
        rest = behind;
    }
    if let [b'e' | b'E', exponent @ ..] = rest {
        let (count, behind) = digits(exponent.strip_prefix(b"+").or(exponent.strip_prefix(b"-")).unwrap_or(exponent));
        if count == 0 {
            return false;
        }
        rest = behind;
    }
    rest.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    fn of(element: Element, text: &str) -> Result<String, Unfit> {
        let mut out = String::new();
        json(text.as_bytes(), element, b',', &mut out).map(|()| out)
    }

    #[test]
    fn numbers_and_booleans_are_json_scalars() {
        assert_eq!(of(Element::Number, "{1,-2,NULL}").as_deref(), Ok("[1,-2,null]"));
        assert_eq!(of(Element::Number, "{1.50,1e+20,-0,1e-05,NaN,-Infinity}").as_deref(), Ok(r#"[1.50,1e+20,-0,1e-05,"NaN","-Infinity"]"#));
        assert_eq!(of(Element::Number, "{123456789012345678901234567890.10}").as_deref(), Ok("[123456789012345678901234567890.10]"));
        assert_eq!(of(Element::Boolean, "{t,f,NULL}").as_deref(), Ok("[true,false,null]"));
        for bad in ["{01}", "{1.}", "{.5}", "{+1}", "{x}", "{nan}", "{1e}", "{\"1\"}", "{null}", "{-}", "{1 }"] {
            assert_eq!(of(Element::Number, bad), Err(Unfit), "{bad}");
        }
        assert_eq!(of(Element::Boolean, "{true}"), Err(Unfit));
    }

    #[test]
    fn text_elements_keep_quotes_backslashes_and_null_apart() {
        assert_eq!(of(Element::Text, "{}").as_deref(), Ok("[]"));
        assert_eq!(of(Element::Text, r#"{a,"",NULL,"NULL","null"}"#).as_deref(), Ok(r#"["a","",null,"NULL","null"]"#));
        assert_eq!(of(Element::Text, r#"{"a,b","c\"d","e\\f","{g}"," h "}"#).as_deref(), Ok(r#"["a,b","c\"d","e\\f","{g}"," h "]"#));
        assert_eq!(of(Element::Text, "{\"\n\t\",\u{1},ñ,😀}").as_deref(), Ok("[\"\\n\\t\",\"\\u0001\",\"ñ\",\"😀\"]"));
        assert_eq!(of(Element::Text, "{\"\\ñ\",\"\\a\"}").as_deref(), Ok("[\"ñ\",\"a\"]"));
    }

    #[test]
    fn dimensions_are_kept() {
        assert_eq!(of(Element::Number, "{{1,2},{3,NULL}}").as_deref(), Ok("[[1,2],[3,null]]"));
        assert_eq!(of(Element::Text, r#"{{{a},{"}"}}}"#).as_deref(), Ok(r#"[[["a"],["}"]]]"#));
        assert_eq!(of(Element::Number, "{{{{{{1}}}}}}").as_deref(), Ok("[[[[[[1]]]]]]"));
    }

    #[test]
    fn other_delimiters_separate() {
        let mut out = String::new();
        json(b"{(1,1),(0,0);NULL}", Element::Text, b';', &mut out).unwrap();
        assert_eq!(out, r#"["(1,1),(0,0)",null]"#);
    }

    #[test]
    fn what_is_no_array_with_lower_bounds_of_one_does_not_fit() {
        let bad = [
            "",
            "{",
            "}",
            "{}x",
            "{}{}",
            "[2:3]={1,2}",
            "[0:0]={{1}}",
            "1",
            "{1",
            "{1}}",
            "{1},",
            "{1,}",
            "{,1}",
            "{1,{2}}",
            "{{1},2}",
            "{{}}",
            "{{1}{2}}",
            "{\"a}",
            "{\"a\\",
            "{\"a\"b}",
            "{a\"b}",
            "{a\\b}",
            "{a{b}",
            "{{{{{{{1}}}}}}}",
            "{1;2",
            "{1,2}}}",
        ];
        for text in bad {
            assert_eq!(of(Element::Text, text), Err(Unfit), "{text}");
        }
        assert_eq!(json(b"{\xff}", Element::Text, b',', &mut String::new()), Err(Unfit));
        assert_eq!(json("{ñ}".as_bytes(), Element::Text, 0xB1, &mut String::new()), Err(Unfit));
    }

    /// `array_out` of one dimension.
    fn array_out(elements: &[Option<String>]) -> String {
        let element = |text: &String| {
            let plain = !text.is_empty()
                && !text.eq_ignore_ascii_case("null")
                && !text.contains(['"', '\\', '{', '}', ',', ' ', '\t', '\n', '\r', '\x0b', '\x0c']);
            if plain { text.clone() } else { format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")) }
        };
        let elements: Vec<_> = elements.iter().map(|e| e.as_ref().map_or("NULL".to_owned(), element)).collect();
        format!("{{{}}}", elements.join(","))
    }

    proptest! {
        #[test]
        fn text_arrays_round_trip(elements in proptest::collection::vec(proptest::option::of("([a-z\"\\\\{},; \t\n\u{1}ñ😀]|NULL){0,5}"), 0..6)) {
            let text = array_out(&elements);
            let out = of(Element::Text, &text).unwrap();
            prop_assert!(out.len() <= GROWTH_MAX * text.len());
            let expected: Vec<Value> = elements.into_iter().map(|e| e.map_or(Value::Null, Value::String)).collect();
            prop_assert_eq!(serde_json::from_str::<Value>(&out).unwrap(), Value::Array(expected));
        }

        #[test]
        fn what_is_taken_is_json_and_nothing_panics(text in "[{}\",;\\\\1-3.eNULLtfñ\u{1} ]{0,24}", delimiter: u8, bytes: Vec<u8>) {
            for element in [Element::Boolean, Element::Number, Element::Text] {
                if let Ok(out) = of(element, &text) {
                    prop_assert!(out.len() <= GROWTH_MAX * text.len());
                    prop_assert!(serde_json::from_str::<Value>(&out).is_ok(), "{}", out);
                }
                let _ = json(text.as_bytes(), element, delimiter, &mut String::new());
                let _ = json(&bytes, element, delimiter, &mut String::new());
            }
        }
    }
}
