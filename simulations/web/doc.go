// Package web has the tests of the dashboard in a real browser: Debian's Chromium, without a window, over a real node.
package web
