//! Random values: bytes compare as values do, are read back, and begin no other value's bytes.

#![allow(clippy::unwrap_used)]

use std::cmp::Ordering;

use flotilla_sql_lite::{
    Decimal, Decoder, Direction, FamilyId, IndexId, KeyError, TableId, Value, decode_row_key, encode, index_span,
    row_key, table_span,
};
use proptest::collection::vec;
use proptest::prelude::*;

/// Integers of every length, edges more often than chance would have it.
fn integers() -> BoxedStrategy<i64> {
    let edges = (0_u32..64, -2_i64..=2).prop_map(|(shift, near)| (1_i64 << shift).wrapping_add(near));
    prop_oneof![edges, any::<i64>(), -300_i64..300].boxed()
}

fn decimals() -> BoxedStrategy<Decimal> {
    let finite = (any::<bool>(), vec(0_u8..10, 0..12), -40_i64..40)
        .prop_map(|(negative, digits, exponent)| Decimal::new(negative, &digits, exponent).unwrap());
    let special = prop_oneof![
        Just(Decimal::NaN),
        Just(Decimal::Infinity),
        Just(Decimal::NegativeInfinity),
        integers().prop_map(Decimal::from),
    ];
    prop_oneof![4 => finite, 1 => special].boxed()
}

fn values() -> BoxedStrategy<Value> {
    let few_bytes = vec(prop_oneof![Just(0_u8), Just(1), Just(0xfe), Just(0xff), any::<u8>()], 0..6);
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        integers().prop_map(Value::Int),
        prop_oneof![any::<f64>(), proptest::num::f64::ANY, Just(0.0), Just(-0.0)].prop_map(Value::Float),
        decimals().prop_map(Value::Decimal),
        "[\\x00ab\u{ff}\u{10ffff}]{0,5}".prop_map(Value::Text),
        few_bytes.prop_map(Value::Bytes),
        any::<i32>().prop_map(Value::Date),
        integers().prop_map(Value::Timestamp),
        any::<[u8; 16]>().prop_map(Value::Uuid),
    ]
    .boxed()
}

fn directions() -> impl Strategy<Value = Direction> {
    prop_oneof![Just(Direction::Asc), Just(Direction::Desc)]
}

fn bytes_of(value: &Value, direction: Direction) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(value, direction, &mut bytes);
    bytes
}

fn ordered(ordering: Ordering, direction: Direction) -> Ordering {
    if direction == Direction::Desc { ordering.reverse() } else { ordering }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn bytes_compare_as_values_do(a in values(), b in values(), direction in directions()) {
        let wanted = ordered(a.cmp(&b), direction);
        prop_assert_eq!(bytes_of(&a, direction).cmp(&bytes_of(&b, direction)), wanted);
    }

    #[test]
    fn values_of_one_type_too(a in decimals(), b in decimals(), c in integers(), d in integers()) {
        for (a, b) in [(Value::Decimal(a), Value::Decimal(b)), (Value::Int(c), Value::Int(d))] {
            prop_assert_eq!(bytes_of(&a, Direction::Asc).cmp(&bytes_of(&b, Direction::Asc)), a.cmp(&b));
        }
    }

    #[test]
    fn what_is_written_is_read(value in values(), direction in directions(), behind in vec(any::<u8>(), 0..4)) {
        let mut bytes = bytes_of(&value, direction);
        bytes.extend(&behind);
        let mut decoder = Decoder::new(&bytes);
        prop_assert_eq!(decoder.value(direction), Ok(value));
        prop_assert_eq!(decoder.rest(), &behind[..]);
    }

    #[test]
    fn no_value_begins_another(a in values(), b in values(), direction in directions()) {
        let (x, y) = (bytes_of(&a, direction), bytes_of(&b, direction));
        prop_assert!(x == y || !y.starts_with(&x), "{a:?} begins {b:?}");
    }

    #[test]
    fn what_is_read_is_what_would_be_written(bytes in vec(any::<u8>(), 0..12), direction in directions()) {
        let mut decoder = Decoder::new(&bytes);
        if let Ok(value) = decoder.value(direction) {
            let read = &bytes[..bytes.len() - decoder.rest().len()];
            prop_assert_eq!(bytes_of(&value, direction), read);
        }
    }

    #[test]
    fn rows_sort_column_by_column(
        left in vec(values(), 3), right in vec(values(), 3), directions in vec(directions(), 3),
        tables in (1_u32..400, 1_u32..400), same_table in any::<bool>(),
    ) {
        let tables = if same_table { (tables.0, tables.0) } else { tables };
        let key = |table, columns: &[Value]| {
            let columns = columns.iter().cloned().zip(directions.iter().copied());
            row_key(TableId(table), IndexId(1), columns, FamilyId(0))
        };
        let (a, b) = (key(tables.0, &left), key(tables.1, &right));
        let columns = left.iter().zip(&right).zip(&directions);
        let wanted = columns.fold(tables.0.cmp(&tables.1), |so_far, ((l, r), direction)| {
            so_far.then(ordered(l.cmp(r), *direction))
        });
        prop_assert_eq!(a.cmp(&b), wanted);
        prop_assert!(table_span(TableId(tables.0)).contains(&a));
        prop_assert!(index_span(TableId(tables.0), IndexId(1)).contains(&a));
        prop_assert_eq!(index_span(TableId(tables.0), IndexId(1)).contains(&b), tables.0 == tables.1);
        prop_assert_eq!(decode_row_key(&a, &directions).unwrap().columns, left);
    }
}

#[test]
fn keys_of_others_are_refused() {
    let key = row_key(TableId(7), IndexId(1), [(Value::Int(5), Direction::Asc)], FamilyId(0));
    assert!(decode_row_key(&key, &[Direction::Asc]).is_ok());
    assert!(decode_row_key(&key, &[]).is_err());
    assert!(decode_row_key(&key, &[Direction::Asc; 2]).is_err());
    assert!(decode_row_key(&flotilla_types::keys::user(b"k"), &[]).is_err());
    assert_eq!(Decoder::new(b"").value(Direction::Asc), Err(KeyError::Short("a value")));
    assert_eq!(Decoder::new(b"\x99").value(Direction::Asc), Err(KeyError::Tag(0x99)));
}
