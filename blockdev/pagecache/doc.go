// Package pagecache reads files without waiting for their disk.
package pagecache
