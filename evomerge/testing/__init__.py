"""Tests that every merge method, optimizer and scorer has to pass, for pytest; also those of other packages."""
