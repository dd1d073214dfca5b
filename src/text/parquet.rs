//! Documents from one text column of a .parquet file.

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use parquet::schema::types::Type;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::items::{Item, Part, until_error};
use crate::files::open_regular;
use crate::{Error, Result};

/// The texts of the column `field`, a document each.
pub fn items(path: &Path, field: &str) -> Result<impl Iterator<Item = Result<Item>> + use<>> {
    let (file, bytes) = open_regular(path)?;
    let reader = guarded(path, || SerializedFileReader::new(file))?;
    let meta = reader.metadata().file_metadata();
    let rows = u64::try_from(meta.num_rows()).unwrap_or(0).max(1);
    let schema = meta.schema();
    let Some(column) = schema.get_fields().iter().find(|column| column.name() == field) else {
        let found: Vec<&str> = schema.get_fields().iter().map(|column| column.name()).collect();
        return Err(Error::input(path, field, format!("the columns {}", found.join(", ")), "a text column"));
    };
    let projection = Type::group_type_builder(schema.name()).with_fields(vec![Arc::clone(column)]).build();
    let projection = guarded(path, || projection)?;
    let iter = guarded(path, || RowIter::from_file_into(Box::new(reader)).project(Some(projection)))?;
    let rows = Rows { path: path.into(), field: field.into(), iter, row: 0, rows, bytes };
    Ok(until_error(rows, Rows::next))
}

struct Rows {
    path: PathBuf,
    field: String,
    iter: RowIter<'static>,
    /// Rows read and all rows, to tell how far into the file of `bytes` bytes we are.
    row: u64,
    rows: u64,
    bytes: u64,
}

impl Rows {
    fn next(&mut self) -> Result<Option<Item>> {
        let next = guarded(&self.path, || self.iter.next().transpose())?;
        let Some(row) = next else { return Ok(None) };
        self.row += 1;
        let read = (u128::from(self.bytes) * u128::from(self.row) / u128::from(self.rows)) as u64;
        Ok(Some(match text(row) {
            Ok(text) if text.is_empty() => Item::Empty,
            Ok(text) => Item::Part(Part { text, begins: true, read: read.min(self.bytes) }),
            Err(found) => {
                let at = format!("row {}: {}", self.row, self.field);
                Item::Unusable(Error::input(&self.path, at, found, "text"))
            }
        }))
    }
}

fn text(row: Row) -> Result<String, &'static str> {
    match row.into_columns().pop() {
        Some((_, Field::Str(text))) => Ok(text),
        Some((_, Field::Bytes(bytes))) => {
            String::from_utf8(bytes.data().to_vec()).map_err(|_| "bytes that are not UTF-8")
        }
        Some((_, Field::Null)) | None => Ok(String::new()),
        Some(_) => Err("another type"),
    }
}

/// The parquet crate panics on some damaged files.
fn guarded<T, E: Display>(path: &Path, work: impl FnOnce() -> Result<T, E>) -> Result<T> {
    let found = match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(e)) => e.to_string(),
        Err(_) => "damage that the parquet crate cannot describe".to_string(),
    };
    Err(Error::input(path, "parquet", found, "a readable .parquet file"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use parquet::data_type::{ByteArray, ByteArrayType};
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    fn written(texts: &[Option<&str>]) -> tempfile::NamedTempFile {
        let message = "message m { required int32 id; optional binary text (UTF8); }";
        let schema = Arc::new(parse_message_type(message).unwrap());
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut writer =
            SerializedFileWriter::new(file.reopen().unwrap(), schema, Default::default()).unwrap();
        for half in texts.chunks(2) {
            let mut group = writer.next_row_group().unwrap();
            let mut column = group.next_column().unwrap().unwrap();
            let ids: Vec<i32> = (0..half.len() as i32).collect();
            column.typed::<parquet::data_type::Int32Type>().write_batch(&ids, None, None).unwrap();
            column.close().unwrap();
            let mut column = group.next_column().unwrap().unwrap();
            let values: Vec<ByteArray> = half.iter().flatten().map(|t| ByteArray::from(*t)).collect();
            let levels: Vec<i16> = half.iter().map(|t| t.is_some().into()).collect();
            column.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None).unwrap();
            column.close().unwrap();
            group.close().unwrap();
        }
        writer.close().unwrap();
        file
    }

    #[test]
    fn rows_are_documents() {
        let file = written(&[Some("one"), None, Some(""), Some("zwei ü"), Some("three")]);
        let found: Vec<Item> = items(file.path(), "text").unwrap().collect::<Result<_>>().unwrap();
        let texts: Vec<Option<&str>> = found
            .iter()
            .map(|item| if let Item::Part(part) = item { Some(part.text.as_str()) } else { None })
            .collect();
        assert_eq!(texts, [Some("one"), None, None, Some("zwei ü"), Some("three")]);
        let Some(Item::Part(last)) = found.last() else { unreachable!() };
        assert_eq!(last.read, file.path().metadata().unwrap().len());
    }

    #[test]
    fn unusable_files_are_errors() {
        let file = written(&[Some("some text that is long enough"), Some("more")]);
        let error = items(file.path(), "txt").err().unwrap().to_string();
        assert!(error.contains("id, text"), "{error}");
        let first = items(file.path(), "id").unwrap().next().unwrap().unwrap();
        assert!(matches!(first, Item::Unusable(e) if e.to_string().contains("row 1")));
        let good = std::fs::read(file.path()).unwrap();
        for len in 0..good.len() {
            std::fs::write(file.path(), &good[..len]).unwrap();
            assert!(items(file.path(), "text").is_err());
        }
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x55;
            std::fs::write(file.path(), &bad).unwrap();
            // Any result, but no panic and no endless iteration.
            if let Ok(found) = items(file.path(), "text") {
                assert!(found.take(1000).count() < 1000);
            }
        }
    }
}
