//! `flotilla kv`: one key at a time.

use std::io::Read;

use bytes::Bytes;
use serde_json::json;

use super::args::{Form, Kv, KvCommand};
use super::failure::{Failure, Outcome, printed};
use super::output::Output;
use super::{export, import, rows};
use crate::{Client, ScanOptions, Span, Swap};

pub(crate) async fn run(client: &Client, kv: Kv, output: &mut Output<'_>) -> Result<Outcome, Failure> {
    let form = kv.form;
    match kv.command {
        KvCommand::Get { key } => get(client, form, &key, output).await,
        KvCommand::Put { key, value } => {
            let key = form.argument("the key", &key)?;
            let when = client.put(key, read_value(form, &value)?).await?;
            output.answer(&json!({ "written": when.to_string() }), || format!("written at {when}"))?;
            Ok(Outcome::Done)
        }
        KvCommand::Del { key, to: None } => {
            let when = client.delete(form.argument("the key", &key)?).await?;
            output.answer(&json!({ "removed": when.to_string() }), || format!("removed at {when}"))?;
            Ok(Outcome::Done)
        }
        KvCommand::Del { key, to: Some(to) } => {
            let (start, end) = (form.argument("the key", &key)?, form.argument("--to", &to)?);
            if end <= start {
                return Err(Failure::Usage("the span is empty: --to must lie above the key".to_owned()));
            }
            let keys = client.delete_range(Span { start, end: Some(end) }).await?;
            output.answer(&json!({ "keys": keys }), || format!("removed {keys} keys"))?;
            Ok(Outcome::Done)
        }
        KvCommand::Scan { span, reverse, limit } => {
            let options = ScanOptions { reverse, rows_max: limit, at: None };
            scan(client, form, form.span(&span)?, options, output).await
        }
        KvCommand::Cas { key, expect, set } => cas(client, form, &key, expect, set, output).await,
        KvCommand::Import(args) => import::run(client, form, &args, output).await,
        KvCommand::Export(args) => export::run(client, form, &args, output).await,
    }
}

async fn get(client: &Client, form: Form, key: &str, output: &mut Output<'_>) -> Result<Outcome, Failure> {
    let key = form.argument("the key", key)?;
    let Some(found) = client.get(key.clone()).await? else {
        if output.json {
            output.object(&serde_json::Value::Null)?;
        }
        return Ok(Outcome::No);
    };
    if output.json {
        output.object(&rows::object(form, &key, &found.value, found.written))?;
    } else if let (false, false) = (form.hex, form.base64) {
        // As it is, byte for byte: a value need not be text.
        printed(output.to.write_all(&found.value).and_then(|()| output.to.write_all(b"\n")))?;
    } else {
        printed(writeln!(output.to, "{}", form.show(&found.value)))?;
    }
    Ok(Outcome::Done)
}

async fn scan(
    client: &Client,
    form: Form,
    span: Span,
    options: ScanOptions,
    output: &mut Output<'_>,
) -> Result<Outcome, Failure> {
    let mut scan = client.scan(span, options);
    while let Some(row) = scan.next().await? {
        if output.json {
            output.object(&rows::object(form, &row.key, &row.value, row.written))?;
        } else {
            printed(writeln!(output.to, "{}\t{}", form.show(&row.key), form.show(&row.value)))?;
        }
    }
    Ok(Outcome::Done)
}

async fn cas(
    client: &Client,
    form: Form,
    key: &str,
    expect: Option<String>,
    set: Option<String>,
    output: &mut Output<'_>,
) -> Result<Outcome, Failure> {
    let key = form.argument("the key", key)?;
    let expected = expect.map(|value| form.argument("--expect", &value)).transpose()?;
    let new = set.map(|value| form.argument("--set", &value)).transpose()?;
    match client.compare_and_swap(key, expected, new).await? {
        Swap::Swapped(when) => {
            let answer = json!({ "swapped": true, "written": when.to_string() });
            output.answer(&answer, || format!("swapped at {when}"))?;
            Ok(Outcome::Done)
        }
        Swap::Met(actual) => {
            let shown = actual.as_ref().map(|value| form.show(value));
            output.answer(&json!({ "swapped": false, "actual": shown }), || match shown {
                Some(value) => format!("not swapped: the value is {value}"),
                None => "not swapped: the key has no value".to_owned(),
            })?;
            Ok(Outcome::No)
        }
    }
}

/// A value from the line, or all of standard input.
fn read_value(form: Form, argument: &str) -> Result<Bytes, Failure> {
    if argument != "-" {
        return form.argument("the value", argument);
    }
    let mut value = Vec::new();
    std::io::stdin().read_to_end(&mut value).map_err(Failure::file("read standard input"))?;
    Ok(value.into())
}
