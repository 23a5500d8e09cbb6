package systemd_test

func activated() {}
