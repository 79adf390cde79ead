"""Makes the tests a package, so that what several of them share can be imported as tests.networks and the like."""
