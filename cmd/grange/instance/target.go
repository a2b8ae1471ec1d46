package instance

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"strings"
)

// target is where an instance's data are put away, as a file of a host says it.
type target struct {
	Type      string `json:"type"`
	Path      string `json:"path"`   // of a file target
	Bucket    string `json:"bucket"` // and of one in s3
	Prefix    string `json:"prefix"`
	Endpoint  string `json:"endpoint"`
	Region    string `json:"region"`
	PathStyle bool   `json:"path_style"`
}

// targetOf is the URL of a target, which text is, or the file says that it names.
func targetOf(text string) (string, error) {
	if text == "" || strings.Contains(text, "://") {
		return text, nil
	}
	b, err := os.ReadFile(text)
	if err != nil {
		return "", fmt.Errorf("--target: want file:///FOLDER, s3://BUCKET/PREFIX, or a file that says it: %w", err)
	}
	var t target
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&t); err != nil {
		return "", fmt.Errorf("--target %s: %w", text, err)
	}
	switch {
	case t.Type == "file" && t == target{Type: t.Type, Path: t.Path}:
		return (&url.URL{Scheme: "file", Path: t.Path}).String(), nil
	case t.Type == "s3" && t.Bucket != "" && t.Path == "":
		query := url.Values{}
		for name, value := range map[string]string{"endpoint": t.Endpoint, "region": t.Region, "path-style": map[bool]string{true: "true"}[t.PathStyle]} {
			if value != "" {
				query.Set(name, value)
			}
		}
		return (&url.URL{Scheme: "s3", Host: t.Bucket, Path: "/" + strings.Trim(t.Prefix, "/"), RawQuery: query.Encode()}).String(), nil
	}
	return "", fmt.Errorf(`--target %s: want {"type":"file","path":"/FOLDER"} or {"type":"s3","bucket":"NAME"}, with prefix, endpoint, region and path_style where they are needed`, text)
}
