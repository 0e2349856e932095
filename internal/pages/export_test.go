package pages

// Choose is For with languages of the test's own.
var Choose = choose
