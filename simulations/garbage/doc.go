// Package garbage plays nodes and collections of garbage against one another at one origin, and holds that nothing that lives
// is lost, whoever commits meanwhile, however long anybody sleeps, and whatever the clocks of nodes say.
//
// In a play ([TestNothingThatLivesIsLost]) time is fake, and each request of each node waits until a director lets it go: at
// once, or up to days later; it may fail, lose its reply, or be carried out when nobody waits for it any more. Nodes whose
// clocks are an hour off publish, replace, tag and remove images and trees, put instances away, fold, fork, snapshot and purge
// volumes, read by leases, and collect, several at once on the same names; they are killed, and come back with what was on
// their disks. Whenever all is quiet, each record whose committer was told that it stands is read to its last byte. In the
// end all is well: whatever was left half done is done once more, everything that is named is whole, and what is dead is gone
// after two runs. [TestEveryOtherRequestFails] is the same in real time at an S3 store, of which every other request fails.
//
// Nodes are made of the product's own parts: node/records, node/images, node/volumes/fold and /records, blockdev/volume,
// origin/garbage. What a node has beside those is not played here: its network (members that write for others), the hub of
// instances, node/leases, and mounts. Takeovers, holders and orphans have collections in between in node/volumes
// TestCollectionsTakeNothing.
//
// Beside the plays, [TestACollectionAtEachRequest] and [TestAwakeBesideARun] go through the requests of each sort of commit one
// by one.
//
// Of the incidents of others that taught what a collection must not do, each is a test:
//
//	 1  errors of a list were swallowed (JuiceFS #6479)             origin/garbage TestListsThatLie, TestListThatLeavesOut, TestAnyRequestFails
//	 2  a second collector confused two states (JuiceFS #5194)      TestAHalfDoneBatch
//	 3  fresh objects, not yet in a manifest (SlateDB #604)         TestAFreshPackWhoseRecordTakesDays, TestAwakeBesideARun
//	 4  the grace counted from the upload (SlateDB #204)            TestGraceBeginsWithTheTombstone
//	 5  a number was freed, and given again (SlateDB #355)          TestTheEndOfAnEpochStays
//	 6  a cached "exists"; nested references (distribution #3045)   TestWhatWasThereOnce, TestWhatIsNamedThroughOthers, TestACollectionAtEachRequest
//	 7  an old tool met newer references (iceberg #4194)            origin/garbage TestWhatIsNotKnownEndsIt, TestNewerBodyEndsIt
//	 8  stores lose objects by themselves (Ceph 47866)              origin/garbage/check TestEachDamageIsFound; node/upkeep TestAChecksProgressIsRemembered
//	 9  a Last-Modified of before (kopia #4769, Garage)             TestLastModifiedIsNotAsked, origin/garbage TestClockThatGoesBack
//	10  missing packs were noticed months later (restic #2777)      node/records TestARecordOfWhatIsGoneIsTakenBack; see 8
//	11  one broken object stopped it for ever (attic #361)          origin/garbage TestDamagedRecordIsHeld, TestDamagedManifest
//	12  deletions of one that was overtaken (Neon RFC 025)          origin/garbage TestTwoAtOnce, TestOneAtATime
//	13  a conditional write whose reply was lost (icechunk #2156)   origin/catalog TestALostReplyToEachWriteUnderLoad; origin/garbage TestAnyRequestFails
//
// `make soak` plays for hours.
package garbage
