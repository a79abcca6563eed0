//! `flotilla kv export`: the rows of a span as of one moment.
//!
//! A file appears under its name when it is complete: until then it is called as it, with `.part` behind.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use serde_json::json;

use super::args::{Export, Form};
use super::failure::{Failure, Outcome};
use super::output::Output;
use super::progress;
use super::rows::{self, RowWriter};
use crate::{Client, ScanOptions};

pub(crate) async fn run(
    client: &Client,
    form: Form,
    args: &Export,
    output: &mut Output<'_>,
) -> Result<Outcome, Failure> {
    let span = form.span(&args.span)?;
    if args.file == Path::new("-") {
        export(client, form, args, span, &mut *output.to, true).await?;
        return Ok(Outcome::Done);
    }
    let mut part = args.file.clone().into_os_string();
    part.push(".part");
    let failed = |what: &str| Failure::file(format!("{what} {}", args.file.display()));
    let file = File::create(&part).map_err(failed("create"))?;
    let mut file = BufWriter::with_capacity(1 << 20, file);
    let rows = export(client, form, args, span, &mut file, output.json).await?;
    file.into_inner().map_err(|error| failed("write")(error.into_error()))?.sync_all().map_err(failed("sync"))?;
    fs::rename(&part, &args.file).map_err(failed("name"))?;
    output.answer(&json!({ "rows": rows }), || format!("{rows} rows written to {}", args.file.display()))?;
    Ok(Outcome::Done)
}

async fn export(
    client: &Client,
    form: Form,
    args: &Export,
    span: crate::Span,
    to: &mut (dyn Write + Send),
    quiet: bool,
) -> Result<u64, Failure> {
    let failed = || Failure::file(format!("write {}", args.file.display()));
    let mut writer = RowWriter::new(to, form, rows::format_of(args.format, &args.file)).map_err(failed())?;
    let bar = progress::bar(None, quiet);
    let mut scan = client.scan(span, ScanOptions::default());
    let mut count = 0_u64;
    while let Some(row) = scan.next().await? {
        writer.row(&row.key, &row.value).map_err(failed())?;
        count += 1;
        if count.is_multiple_of(1_000) {
            bar.set_message(format!("{count} rows"));
        }
    }
    writer.finish().map_err(failed())?;
    bar.finish_and_clear();
    Ok(count)
}
