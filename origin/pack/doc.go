// Package pack turns chunks into pack objects in a bucket, and back.
//
// A pack is one object of about 32 MiB that holds many stored frames: chunks
// first, then what a reader needs to find them. The pack that ends an import or
// a fold closes with its metadata, in this order:
//
//	header | chunks … | node page | node page | … | root | manifest | directory | footer
//
// Map nodes stand bottom-up, each directly followed by its locator page, which
// says where the node's children lie. A page is content-addressed: the parent's
// page names it, the [Head] in the record names the top one. So a cold reader
// that holds a record needs three reads: the top node and page, the leaf node
// and page, the chunk.
//
// [Builder] writes packs, [Reader] reads them, [Index] knows what importers may
// reuse. Bytes leave this package as content.Verified only.
package pack
