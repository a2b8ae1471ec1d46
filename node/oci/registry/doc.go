// Package registry is what the door knows of registries: repositories and the names that their images have in the mesh,
// what a manifest names, the client of registries that blobs come from, and the memory of what tags stood for and who
// was let read what. It opens no door and keeps no blob.
package registry
