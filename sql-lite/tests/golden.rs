//! Keys as former versions wrote them: they must be written and read the same for ever. Files are only added.
//!
//! A line is: ascending bytes, descending bytes, value. `GOLDEN=write` makes a file that is not there yet.

#![allow(clippy::unwrap_used)]

use std::fmt::Write;
use std::path::PathBuf;

use flotilla_sql_lite::{Decimal, Decoder, Direction, FamilyId, IndexId, TableId, Value, encode, row_key};

fn integers() -> Vec<i64> {
    vec![i64::MIN, -65_537, -257, -256, -1, 0, 1, 255, 256, 65_536, i64::MAX]
}

fn values() -> Vec<Value> {
    let decimals =
        ["-Infinity", "-1e100", "-12.5", "-0.001", "0", "0.001", "1", "12.5", "12.51", "1e100", "Infinity", "NaN"];
    let floats = [f64::NEG_INFINITY, f64::MIN, -1.5, -f64::MIN_POSITIVE, 0.0, 1.5, f64::MAX, f64::INFINITY, f64::NAN];
    let mut values = vec![Value::Null, Value::Bool(false), Value::Bool(true)];
    values.extend(integers().into_iter().map(Value::Int));
    values.extend(floats.map(Value::Float));
    values.extend(decimals.map(|text| Value::Decimal(text.parse::<Decimal>().unwrap())));
    values.extend(["", "\0", "\0a", "a", "a\0", "ab", "ä", "\u{10ffff}"].map(|text| Value::Text(text.to_owned())));
    values.extend(
        [&b""[..], b"\x00", b"\x00\x01", b"\x00\xff", b"\x01", b"\xff"].map(|bytes| Value::Bytes(bytes.to_vec())),
    );
    values.extend([i32::MIN, -1, 0, 20_000, i32::MAX].map(Value::Date));
    values.extend(integers().into_iter().map(Value::Timestamp));
    values.extend([[0; 16], *b"0123456789abcdef", [0xff; 16]].map(Value::Uuid));
    values
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

fn render() -> String {
    let mut file = String::new();
    for value in values() {
        let both = [Direction::Asc, Direction::Desc].map(|direction| {
            let mut bytes = Vec::new();
            encode(&value, direction, &mut bytes);
            hex(&bytes)
        });
        writeln!(file, "{} {} {value:?}", both[0], both[1]).unwrap();
    }
    let columns = [(Value::Text("a".to_owned()), Direction::Asc), (Value::Int(5), Direction::Desc)];
    let row = row_key(TableId(300), IndexId(1), columns, FamilyId(2));
    writeln!(file, "{} - row of table 300, index 1, columns a and descending 5, family 2", hex(row.as_bytes()))
        .unwrap();
    file
}

#[test]
fn keys_are_written_as_ever() {
    // Tests run in the directory of their package, wherever it was when they were compiled.
    let path = PathBuf::from("golden/keys-1.txt");
    if !path.exists() && std::env::var("GOLDEN").is_ok_and(|wish| wish == "write") {
        std::fs::write(&path, render()).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap();
    for (line, now) in golden.lines().zip(render().lines()) {
        assert_eq!(line, now);
    }
    assert_eq!(golden.lines().count(), render().lines().count());
    for (line, value) in golden.lines().zip(values()) {
        let mut columns = line.split(' ');
        for direction in [Direction::Asc, Direction::Desc] {
            let bytes = unhex(columns.next().unwrap());
            assert_eq!(Decoder::new(&bytes).value(direction), Ok(value.clone()), "{line}");
        }
    }
    let keys: Vec<_> = golden.lines().take(values().len()).map(|line| line.split(' ').next().unwrap()).collect();
    assert!(keys.is_sorted(), "the values of the file ascend, so do its keys");
}
