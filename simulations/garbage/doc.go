// Package garbage plays nodes and collections of garbage against one another at one origin.
package garbage
