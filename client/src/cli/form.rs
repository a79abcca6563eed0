//! Bytes as people write them: text, hexadecimal digits, base64.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

use super::args::{Form, SpanArgs};
use super::failure::Failure;
use crate::Span;

impl Form {
    /// Reads what a user or a file wrote; the error says what is wrong with it.
    pub(crate) fn read(self, text: &str) -> Result<Bytes, String> {
        if self.hex {
            return hex(text).ok_or_else(|| format!("'{text}' is not hexadecimal: two of 0-9a-f for each byte"));
        }
        if self.base64 {
            return base64(text).ok_or_else(|| format!("'{text}' is not base64"));
        }
        Ok(Bytes::copy_from_slice(text.as_bytes()))
    }

    /// Reads an argument.
    pub(crate) fn argument(self, name: &str, text: &str) -> Result<Bytes, Failure> {
        self.read(text).map_err(|why| Failure::Usage(format!("{name}: {why}")))
    }

    /// Writes bytes so that `read` finds them again; `None` if they are no text and text is asked for.
    pub(crate) fn write(self, bytes: &[u8]) -> Option<String> {
        match self {
            Self { hex: true, .. } => Some(bytes.iter().map(|byte| format!("{byte:02x}")).collect()),
            Self { base64: true, .. } => Some(STANDARD.encode(bytes)),
            _ => std::str::from_utf8(bytes).ok().map(str::to_owned),
        }
    }

    /// Writes bytes for the eye: what is no text is escaped.
    pub(crate) fn show(self, bytes: &[u8]) -> String {
        match self.write(bytes) {
            Some(text) if !text.contains(char::is_control) => text,
            _ => bytes.escape_ascii().to_string(),
        }
    }

    /// Reads the span of a command.
    pub(crate) fn span(self, args: &SpanArgs) -> Result<Span, Failure> {
        if let Some(prefix) = &args.prefix {
            return Ok(Span::prefix(self.argument("--prefix", prefix)?));
        }
        let start = args.from.as_deref().map_or(Ok(Bytes::new()), |from| self.argument("--from", from))?;
        let end = args.to.as_deref().map(|to| self.argument("--to", to)).transpose()?;
        if end.as_ref().is_some_and(|end| *end <= start) {
            return Err(Failure::Usage("the span is empty: --to must lie above --from".to_owned()));
        }
        Ok(Span { start, end })
    }
}

/// Base64 with padding.
pub(crate) fn base64(text: &str) -> Option<Bytes> {
    STANDARD.decode(text).ok().map(Bytes::from)
}

fn hex(text: &str) -> Option<Bytes> {
    if !text.len().is_multiple_of(2) || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: Form = Form { hex: false, base64: false };
    const HEX: Form = Form { hex: true, base64: false };
    const BASE64: Form = Form { hex: false, base64: true };

    #[test]
    fn what_is_written_is_read_again() {
        for form in [HEX, BASE64] {
            for bytes in [&b""[..], b"plain", b"\x00\xff\n"] {
                assert_eq!(form.read(&form.write(bytes).unwrap()).unwrap(), bytes);
            }
        }
        assert_eq!(TEXT.write(b"\xff"), None);
        assert_eq!(TEXT.show(b"a\xff\n"), "a\\xff\\n");
    }

    #[test]
    fn what_is_not_in_the_form_is_refused() {
        for bad in ["0", "0g", "+1", "é"] {
            assert!(HEX.read(bad).is_err(), "{bad}");
        }
        assert!(BASE64.read("&&").is_err());
        let args = SpanArgs { from: Some("b".into()), to: Some("a".into()), prefix: None };
        assert!(matches!(TEXT.span(&args), Err(Failure::Usage(_))));
    }
}
