"""SQL migrations, interchangeable with golang-migrate at any time: same files, version table and locks.

files, sql, steps and drift are pure. directory reads files. ledger, session, execute and watch use the server. runner
combines them: under both locks it first checks everything, then for each step marks the version dirty, runs the file
and marks the version clean.
"""
