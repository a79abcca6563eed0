//! Rows in files: JSON lines and CSV.
//!
//! JSON lines are `{"key": …, "value": …}`, in the form that the command was told (text, hex, base64). Bytes that are no
//! text are written as `key_base64` and `value_base64`, which are read always. CSV has a header line `key,value` and no
//! such way out: rows that are no text need `--base64` or `--hex`.

use std::io::{self, BufRead, Read, Write};
use std::path::Path;

use bytes::Bytes;
use flotilla_types::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::args::{Form, Format};
use super::form::base64;

/// No line of a file may be longer: the largest row in base64, in JSON.
const LINE_BYTES_MAX: u64 = 16 << 20;

/// A line of a file.
pub(crate) struct Line {
    /// Counted from 1.
    pub(crate) number: u64,
    /// Where the next line begins, in bytes from the start.
    pub(crate) end: u64,
    /// The row, or why there is none.
    pub(crate) row: Result<(Bytes, Bytes), String>,
}

/// The format of a file, by its name unless told.
pub(crate) fn format_of(told: Option<Format>, file: &Path) -> Format {
    let csv = file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("csv"));
    told.unwrap_or(if csv { Format::Csv } else { Format::Jsonl })
}

/// Reads lines until the end, or until `each` says stop.
pub(crate) fn read(reader: impl BufRead, form: Form, format: Format, each: impl FnMut(Line) -> bool) -> io::Result<()> {
    match format {
        Format::Jsonl => read_jsonl(reader, form, each),
        Format::Csv => read_csv(reader, form, each),
    }
}

fn read_jsonl(mut reader: impl BufRead, form: Form, mut each: impl FnMut(Line) -> bool) -> io::Result<()> {
    let (mut number, mut end) = (0, 0);
    let mut text = Vec::new();
    loop {
        text.clear();
        let count = reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut text)? as u64;
        if count == 0 {
            return Ok(());
        }
        (number, end) = (number + 1, end + count);
        if count == LINE_BYTES_MAX && text.last() != Some(&b'\n') {
            return Err(io::Error::other(format!("line {number} has more than {LINE_BYTES_MAX} bytes")));
        }
        if text.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        if !each(Line { number, end, row: parse_json(form, &text) }) {
            return Ok(());
        }
    }
}

/// A JSON row as it is read.
#[derive(Deserialize)]
struct JsonRow {
    key: Option<String>,
    value: Option<String>,
    key_base64: Option<String>,
    value_base64: Option<String>,
}

fn parse_json(form: Form, text: &[u8]) -> Result<(Bytes, Bytes), String> {
    let row: JsonRow = serde_json::from_slice(text).map_err(|error| format!("not a JSON row: {error}"))?;
    let field = |name: &str, plain: Option<String>, encoded: Option<String>| match (plain, encoded) {
        (Some(text), None) => form.read(&text),
        (None, Some(text)) => base64(&text).ok_or_else(|| format!("{name}_base64 is not base64")),
        (None, None) => Err(format!("it has neither \"{name}\" nor \"{name}_base64\"")),
        (Some(_), Some(_)) => Err(format!("it has both \"{name}\" and \"{name}_base64\"")),
    };
    Ok((field("key", row.key, row.key_base64)?, field("value", row.value, row.value_base64)?))
}

fn read_csv(reader: impl BufRead, form: Form, mut each: impl FnMut(Line) -> bool) -> io::Result<()> {
    // Records of any length, so that a bad one is a bad line and not the end.
    let mut csv = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(reader);
    let mut record = csv::ByteRecord::new();
    let mut first = true;
    loop {
        let more = csv.read_byte_record(&mut record).map_err(io::Error::other)?;
        if !more {
            return Ok(());
        }
        let number = record.position().map_or(0, csv::Position::line);
        let end = csv.position().byte();
        if std::mem::take(&mut first) {
            if record != vec!["key", "value"] {
                return Err(io::Error::other("its first line is not the header key,value"));
            }
            continue;
        }
        if !each(Line { number, end, row: parse_csv(form, &record) }) {
            return Ok(());
        }
    }
}

fn parse_csv(form: Form, record: &csv::ByteRecord) -> Result<(Bytes, Bytes), String> {
    if record.len() != 2 {
        return Err(format!("{} fields instead of two, key and value", record.len()));
    }
    let field = |i: usize| {
        if !form.hex && !form.base64 {
            return Ok(Bytes::copy_from_slice(&record[i]));
        }
        std::str::from_utf8(&record[i]).map_err(|error| error.to_string()).and_then(|text| form.read(text))
    };
    Ok((field(0)?, field(1)?))
}

/// Writes rows to a file.
pub(crate) enum RowWriter<W: Write> {
    Jsonl(W, Form),
    Csv(Box<csv::Writer<W>>, Form),
}

impl<W: Write> RowWriter<W> {
    pub(crate) fn new(to: W, form: Form, format: Format) -> io::Result<Self> {
        match format {
            Format::Jsonl => Ok(Self::Jsonl(to, form)),
            Format::Csv => {
                let mut writer = csv::Writer::from_writer(to);
                writer.write_record(["key", "value"]).map_err(csv_error)?;
                Ok(Self::Csv(Box::new(writer), form))
            }
        }
    }

    pub(crate) fn row(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        match self {
            Self::Jsonl(to, form) => {
                let mut object = Map::new();
                field(&mut object, *form, "key", key);
                field(&mut object, *form, "value", value);
                writeln!(to, "{}", Value::Object(object))
            }
            Self::Csv(writer, form) => {
                let (Some(key_text), Some(value)) = (form.write(key), form.write(value)) else {
                    let key = key.escape_ascii();
                    let what = format!("the row of {key} is not text: export with --base64, or as jsonl");
                    return Err(io::Error::other(what));
                };
                writer.write_record([key_text, value]).map_err(csv_error)
            }
        }
    }

    pub(crate) fn finish(&mut self) -> io::Result<()> {
        match self {
            Self::Jsonl(to, _) => to.flush(),
            Self::Csv(writer, _) => writer.flush(),
        }
    }
}

fn csv_error(error: csv::Error) -> io::Error {
    match error.into_kind() {
        csv::ErrorKind::Io(error) => error,
        other => io::Error::other(format!("{other:?}")),
    }
}

/// A row as `--json` prints it.
pub(crate) fn object(form: Form, key: &[u8], value: &[u8], written: Timestamp) -> Value {
    let mut object = Map::new();
    field(&mut object, form, "key", key);
    field(&mut object, form, "value", value);
    object.insert("written".to_owned(), written.to_string().into());
    Value::Object(object)
}

fn field(object: &mut Map<String, Value>, form: Form, name: &str, bytes: &[u8]) {
    match form.write(bytes) {
        Some(text) => object.insert(name.to_owned(), text.into()),
        None => {
            let encoded = Form { base64: true, hex: false }.write(bytes).unwrap_or_default();
            object.insert(format!("{name}_base64"), encoded.into())
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &[u8], form: Form, format: Format) -> Vec<Line> {
        let mut lines = Vec::new();
        read(text, form, format, |line| {
            lines.push(line);
            true
        })
        .unwrap();
        lines
    }

    #[test]
    fn what_is_exported_is_imported() {
        let rows: [(&[u8], &[u8]); 4] =
            [(b"a", b"1"), (b"b,\"\n", b"line\nbreak"), (b"\xff", b"\x00"), (b"empty", b"")];
        for form in [Form::default(), Form { hex: true, base64: false }, Form { hex: false, base64: true }] {
            for format in [Format::Jsonl, Format::Csv] {
                let mut file = Vec::new();
                let mut writer = RowWriter::new(&mut file, form, format).unwrap();
                let text_only = format == Format::Csv && !form.hex && !form.base64;
                let rows = rows.iter().filter(|(key, _)| !text_only || std::str::from_utf8(key).is_ok());
                rows.clone().for_each(|(key, value)| writer.row(key, value).unwrap());
                writer.finish().unwrap();
                drop(writer);
                let read: Vec<_> = lines(&file, form, format).into_iter().map(|line| line.row.unwrap()).collect();
                let wanted: Vec<(Bytes, Bytes)> =
                    rows.map(|(key, value)| (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value))).collect();
                assert_eq!(read, wanted);
            }
        }
        let mut writer = RowWriter::new(Vec::new(), Form::default(), Format::Csv).unwrap();
        assert!(writer.row(b"\xff", b"").is_err());
    }

    #[test]
    fn bad_lines_are_named_and_the_rest_is_read() {
        let text =
            b"{\"key\":\"a\",\"value\":\"1\"}\n\nnot json\n{\"key\":\"b\"}\n{\"key_base64\":\"Yg==\",\"value\":\"2\"}";
        let found = lines(text, Form::default(), Format::Jsonl);
        let bad: Vec<_> = found.iter().filter(|line| line.row.is_err()).map(|line| line.number).collect();
        assert_eq!((found.len(), bad), (4, vec![3, 4]));
        assert_eq!(found[3].row, Ok((Bytes::from("b"), Bytes::from("2"))));
        assert_eq!(found[3].end, text.len() as u64);

        let found = lines(b"key,value\na,1\nb\nc,3\n", Form::default(), Format::Csv);
        let bad: Vec<_> = found.iter().filter(|line| line.row.is_err()).map(|line| line.number).collect();
        assert_eq!((found.len(), bad), (3, vec![3]));
        assert!(read(&b"a,1\nb,2\n"[..], Form::default(), Format::Csv, |_| true).is_err(), "a file without header");
    }
}
